"""Determines which dims of inputs, outputs and states are time and batch, from dependences between entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.gradcheck.nested import Function, Tensors
from rnndiag.errors import BadArgument


@dataclass(frozen=True)
class Layout:
    """Dimensions of inputs and outputs (`time`, `batch`), and of each part of the state (its batch, None: unknown)."""

    time: int
    batch: int
    state_batch: tuple[int | None, ...] = ()

    def steps(self, tensors: Tensors, start: int, stop: int) -> Tensors:
        """Time steps start..stop-1 of inputs or outputs, contiguous as a kernel is usually called."""
        return tuple(t.narrow(self.time, start, stop - start).contiguous() for t in tensors)

    def sequence(self, tensors: Tensors, b: int) -> Tensors:
        """Sequence b of inputs or outputs, as a batch of one."""
        return tuple(t.narrow(self.batch, b, 1).contiguous() for t in tensors)

    def state_of(self, state: Tensors, b: int) -> Tensors:
        """The state of sequence b, as a batch of one; parts without a batch dimension stay whole."""
        pairs = zip(state, self.state_batch, strict=True)
        return tuple(s if d is None else s.narrow(d, b, 1).contiguous() for s, d in pairs)

    def join_states(self, states: Sequence[Tensors]) -> Tensors:
        """The states of single sequences as one batch."""
        parts = zip(zip(*states, strict=True), self.state_batch, strict=True)
        return tuple(each[0] if d is None else torch.cat(each, d) for each, d in parts)

    @property
    def separable(self) -> bool:
        """True if every part of the state has a known batch dimension, so that sequences can be run alone."""
        return None not in self.state_batch


def find_layout(
    function: Function, inputs: Tensors, state: Tensors, batch_first: bool | None
) -> Layout:
    """The dims of a kernel. Time is the dim along which a change of the inputs affects other outputs."""
    if batch_first is None:
        carried = [_carries(function, inputs, state, dim) for dim in (0, 1)]
        if carried[0] == carried[1]:
            what = "neither" if not carried[0] else "both"
            raise BadArgument(
                f"Cannot tell time from batch: of the first two dimensions of the inputs, "
                f"{tuple(inputs[0].shape[:2])}, {what} carry a change on to other outputs.",
                "Pass batch_first=True for (B, T, ...) or batch_first=False for (T, B, ...).",
            )
        batch_first = carried[1]
    time = 1 if batch_first else 0
    layout = Layout(time, 1 - time)
    size = inputs[0].shape[layout.batch]
    dims = tuple(_batch_dim(function, inputs, state, i, layout, size) for i in range(len(state)))
    return Layout(time, 1 - time, dims)


def _carries(function: Function, inputs: Tensors, state: Tensors, dim: int) -> bool:
    """Whether a change of the inputs at index 0 of `dim` changes outputs at other indices."""
    if inputs[0].shape[dim] < 2:
        return False
    changed = tuple(_perturbed(x, dim) for x in inputs)
    with torch.no_grad():
        before, _ = function(tuple(x.clone() for x in inputs), tuple(s.clone() for s in state))
        after, _ = function(changed, tuple(s.clone() for s in state))
    pairs = zip(before, after, strict=True)
    return any(
        _differ(b.narrow(dim, 1, b.shape[dim] - 1), a.narrow(dim, 1, a.shape[dim] - 1))
        for b, a in pairs
    )


def _batch_dim(
    function: Function, inputs: Tensors, state: Tensors, index: int, layout: Layout, size: int
) -> int | None:
    """The batch dim of one state part: by its size, else by what it influences; None if unknown."""
    part = state[index]
    fitting = [dim for dim in range(part.ndim) if part.shape[dim] == size]
    if len(fitting) == 1:
        return fitting[0]
    if size == 1:
        return None
    for dim in fitting:
        changed = [s.clone() for s in state]
        changed[index] = _perturbed(part, dim)
        with torch.no_grad():
            before, _ = function(tuple(x.clone() for x in inputs), tuple(s.clone() for s in state))
            after, _ = function(tuple(x.clone() for x in inputs), tuple(changed))
        others = (layout.batch, 1, size - 1)
        pairs = list(zip(before, after, strict=True))
        moved = any(_differ(b, a) for b, a in pairs)
        if moved and not any(_differ(b.narrow(*others), a.narrow(*others)) for b, a in pairs):
            return dim
    return None


def _perturbed(tensor: Tensor, dim: int) -> Tensor:
    """A copy with other values at index 0 of `dim`; integer tensors are unchanged."""
    copy = tensor.clone()
    if copy.is_floating_point():
        copy.narrow(dim, 0, 1).mul_(0.5).add_(0.25)
    return copy


def _differ(a: Tensor, b: Tensor) -> bool:
    """Whether two results differ by more than rounding: sums over a batch may be evaluated in another order."""
    a, b = a.detach().double(), b.detach().double()
    return (
        bool((a - b).abs().amax() > 1e-6 * a.abs().amax().clamp(min=1e-30)) if a.numel() else False
    )
