"""State parts that a fused kernel does not hand out (an LSTM's c_t), from the recorded h: teacher-forced."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rnndiag.engine.cells import Cell, State
from rnndiag.engine.transition import gates, step

CHUNK_BYTES = 64 * 2**20
"""The gates of at most this many bytes are held at once, and kept for the adjoints where they are all."""

Gates = Mapping[str, Tensor]


@torch.no_grad()
def complete_states(
    cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor, h: Tensor, initial: State
) -> tuple[State, Gates | None]:
    """All parts of s_t, (T, B, S_p), from x_t (T, B, I), h_t (T, B, S_h) and s_0; and the gates, if kept."""
    if len(cell.parts) == 1:
        return (h,), None
    before = torch.cat([initial[0][None], h[:-1]])
    if cell.recover is None:
        return (h, *_by_step(cell, weights, inputs, before, initial)), None
    row = h.shape[1] * weights["weight_ih"].shape[0] * h.element_size()
    size = max(1, CHUNK_BYTES // max(1, row))
    stretches: list[State] = []
    state, values = initial, None
    for start in range(0, len(h), size):
        rows = slice(start, start + size)
        values = gates(cell, weights, inputs[rows], (before[rows],))
        rest = cell.recover(values, state)
        stretches.append(rest)
        state = (h[rows][-1], *(part[-1] for part in rest))
    if len(stretches) == 1:
        return (h, *stretches[0]), values
    return (h, *(torch.cat(part) for part in zip(*stretches, strict=True))), None


def _by_step(
    cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor, before: Tensor, initial: State
) -> State:
    found: list[State] = []
    rest = initial[1:]
    for x, h in zip(inputs, before, strict=True):
        rest = step(cell, weights, x, (h, *rest))[1:]
        found.append(rest)
    return tuple(torch.stack(part) for part in zip(*found, strict=True))
