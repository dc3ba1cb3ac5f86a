"""State parts that a fused kernel does not hand out (an LSTM's c_t), from the recorded h: teacher-forced."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rnndiag.engine.cells import Cell, State
from rnndiag.engine.transition import preactivations, step

CHUNK_BYTES = 64 * 2**20
"""The pre-activations of at most this many bytes are held at once, and kept for the adjoints where they are all."""

Preactivations = tuple[Tensor, Tensor]


@torch.no_grad()
def complete_states(
    cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor, h: Tensor, initial: State
) -> tuple[State, Preactivations | None]:
    """All parts of s_t, (T, B, S_p), from x_t (T, B, I), h_t (T, B, S_h) and s_0; and the pre-activations, if kept."""
    if len(cell.parts) == 1:
        return (h,), None
    before = torch.cat([initial[0][None], h[:-1]])
    row = h.shape[1] * weights["weight_ih"].shape[0] * h.element_size()
    size = max(1, CHUNK_BYTES // max(1, row))
    stretches: list[State] = []
    state, pre = initial, None
    for start in range(0, len(h), size):
        rows = slice(start, start + size)
        pre = preactivations(cell, weights, inputs[rows], before[rows])
        rest = _stretch(cell, weights, pre, inputs[rows], before[rows], state)
        stretches.append(rest)
        state = (h[rows][-1], *(part[-1] for part in rest))
    if len(stretches) == 1:
        return (h, *stretches[0]), pre
    return (h, *(torch.cat(part) for part in zip(*stretches, strict=True))), None


def _stretch(
    cell: Cell,
    weights: Mapping[str, Tensor],
    pre: Preactivations,
    inputs: Tensor,
    before: Tensor,
    initial: State,
) -> State:
    if cell.recover is not None:
        return tuple(cell.recover(*pre, initial, **cell.extra_weights(weights)))
    found: list[State] = []
    rest = initial[1:]
    for x, h in zip(inputs, before, strict=True):
        rest = step(cell, weights, x, (h, *rest))[1:]
        found.append(rest)
    return tuple(torch.stack(part) for part in zip(*found, strict=True))
