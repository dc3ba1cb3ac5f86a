"""State parts that a fused kernel does not hand out (an LSTM's c_t), from the recorded h: teacher-forced."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rnndiag.engine.cells import Cell, State
from rnndiag.engine.transition import preactivations, step

CHUNK_BYTES = 16 * 2**20
"""The pre-activations of at most this many bytes are held at once."""


@torch.no_grad()
def complete_states(
    cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor, h: Tensor, initial: State
) -> State:
    """All parts of s_t, (T, B, S_p), from x_t (T, B, I), h_t (T, B, S_h) and s_0."""
    if len(cell.parts) == 1:
        return (h,)
    before = torch.cat([initial[0][None], h[:-1]])
    size = max(
        1, CHUNK_BYTES // max(1, h.shape[1] * weights["weight_ih"].shape[0] * h.element_size())
    )
    stretches: list[State] = []
    state = initial
    for start in range(0, len(h), size):
        rows = slice(start, start + size)
        rest = _stretch(cell, weights, inputs[rows], before[rows], state)
        stretches.append(rest)
        state = (h[rows][-1], *(part[-1] for part in rest))
    return (h, *(torch.cat(part) for part in zip(*stretches, strict=True)))


def _stretch(
    cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor, before: Tensor, initial: State
) -> State:
    if cell.recover is not None:
        a_ih, a_hh = preactivations(cell, weights, inputs, before)
        return tuple(cell.recover(a_ih, a_hh, initial, **cell.extra_weights(weights)))
    found: list[State] = []
    rest = initial[1:]
    for x, h in zip(inputs, before, strict=True):
        rest = step(cell, weights, x, (h, *rest))[1:]
        found.append(rest)
    return tuple(torch.stack(part) for part in zip(*found, strict=True))
