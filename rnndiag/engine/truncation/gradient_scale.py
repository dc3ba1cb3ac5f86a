"""Scales the gradient of a state in the backward pass: the building block of randomized truncation."""

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
    """The state unchanged, with its gradient multiplied by a factor in the backward pass.

    Args:
        state: A tensor, or tensors in tuples, lists and dicts ((h, c) of an LSTM); None stays None.
        factor: A number (0 cuts the graph, like detach), or a tensor that broadcasts against every tensor of the state:
            (B, 1) scales each sequence by its own factor, for states (B, H) and (layers, B, H) alike.

    Returns:
        The same structure with the same values.

    Raises:
        BadArgument: The state holds something that is not a tensor.

    Example:
        >>> x = torch.ones(3, requires_grad=True)
        >>> rnndiag.scale_gradient(x, 0.5).sum().backward()
        >>> x.grad
        tensor([0.5000, 0.5000, 0.5000])
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
    """(h, c) with h detached: the LSTM rule of 1997 in a training loop.

    Args:
        state: Tensors (h, c, ...).

    Returns:
        The same values; the gradient goes back through all parts but the first.

    Raises:
        BadArgument: The state has fewer than two parts.

    Example:
        >>> h, c = rnndiag.cell_only((torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)))
        >>> h.requires_grad, c.requires_grad
        (False, True)
    """
    if not isinstance(state, (tuple, list)) or len(state) < 2:
        raise BadArgument(
            "cell_only needs a state of several parts, (h, c).",
            "It is for cells with a state beside h, such as LSTMs.",
        )
    return (state[0].detach(), *state[1:])
