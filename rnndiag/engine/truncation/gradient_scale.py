"""A state whose gradient is scaled on its way back: the one building block of randomized truncation."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from rnndiag.errors import BadArgument

T = TypeVar("T")


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        factor = ctx.factor
        if isinstance(factor, Tensor):
            return torch.where(factor == 0, torch.zeros_like(grad), grad * factor.to(grad)), None
        return grad * factor, None


def scale_gradient(state: T, factor: Tensor | float) -> T:
    """The same state, unchanged in the forward pass; what comes back through it is multiplied by `factor`.

    state: a tensor, or tensors in tuples, lists and dicts ((h, c) of an LSTM); None stays None.
    factor: a number (0 cuts the graph, like detach), or a tensor that broadcasts against every tensor of the state:
        (B, 1) scales each sequence by its own factor, for states (B, H) and (layers, B, H) alike.
    """
    return cast(T, _scaled(state, factor))


def _scaled(state: Any, factor: Tensor | float) -> Any:
    if state is None:
        return None
    if isinstance(state, Tensor):
        if isinstance(factor, Tensor):
            return _ScaleGradient.apply(state, factor)  # type: ignore[no-untyped-call]
        if factor == 0:
            return state.detach()
        return state if factor == 1 else _ScaleGradient.apply(state, factor)  # type: ignore[no-untyped-call]
    if isinstance(state, dict):
        return {key: _scaled(value, factor) for key, value in state.items()}
    if isinstance(state, (tuple, list)):
        parts = [_scaled(value, factor) for value in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    raise BadArgument(
        f"scale_gradient got a {type(state).__name__}.",
        "Give a tensor, or tensors in tuples, lists or dicts.",
    )


def cell_only(state: Any) -> tuple[Tensor, ...]:
    """(h, c) with the gradient's way through h cut: the LSTM rule of 1997 in a training loop."""
    if not isinstance(state, (tuple, list)) or len(state) < 2:
        raise BadArgument(
            "cell_only needs a state of several parts, (h, c).",
            "It is for cells with a state beside h, such as LSTMs.",
        )
    return (state[0].detach(), *state[1:])
