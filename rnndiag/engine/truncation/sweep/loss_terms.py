"""The gradient of one loss, split by the earlier states through which it flows."""

from __future__ import annotations

import torch
from torch import Tensor

from rnndiag.engine.truncation.chains.stack import Runs, chain_of
from rnndiag.engine.truncation.sweep.lag_cotangents import Rows, lag_cotangents
from rnndiag.engine.truncation.sweep.parameter_layout import layout_of
from rnndiag.engine.truncation.sweep.products import add_gradients, empty_buffer, right_factors
from rnndiag.errors import BadArgument


@torch.inference_mode(False)
@torch.no_grad()
def loss_terms(layer_run: Runs, parameter: str, u: int) -> Tensor:
    """The terms k of the gradient of one loss, dL_u/dθ = Σ_k (∂s_k/∂θ)^T a^{u-k}_k: what each state up to u adds.

    Args:
        layer_run: A layer run, or the layer runs of a stack, lowest first.
        parameter: Key of the weight; in a stack with the layer's name before it.
        u: Output step of the loss, 0 .. T-1, or negative from the end.

    Returns:
        (T, *shape of the parameter); zero for states after u. Their sum is the gradient of the loss at u alone.

    Raises:
        BadArgument: There is no such parameter or output.

    Example:
        >>> rnndiag.loss_terms(layer_run, "weight_hh", u=11).shape
        torch.Size([12, 20, 5])
    """
    chain = chain_of(layer_run).prepared()
    layout = layout_of(chain)
    if parameter not in layout.names:
        raise BadArgument(
            f"{chain.name} has no parameter {parameter!r}.", f"It has: {', '.join(layout.names)}."
        )
    if not -chain.T <= u < chain.T:
        raise BadArgument(f"There is no output {u}.", f"Outputs count from 0 to {chain.T - 1}.")
    u %= chain.T
    (slot,) = (s for s in layout.slots if s.name == parameter)
    rows = Rows(slice(u, u + 1), torch.tensor([u]))
    terms = chain.direct[0].new_zeros(chain.T, *slot.shape)
    rights = right_factors(chain, layout)
    for lag in lag_cotangents(chain, rows, u + 1):
        buffer = empty_buffer(chain, layout, 1)
        add_gradients(buffer, rights, lag.steps_back, lag.scale)
        terms[u - lag.d] = slot.of(buffer[0]) / slot.factor
    return terms
