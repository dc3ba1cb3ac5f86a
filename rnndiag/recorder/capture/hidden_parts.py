"""Recomputes state parts that a fused kernel does not return (an LSTM's c_t) from the recorded h_t."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rnndiag.engine.cells import Cell, State
from rnndiag.engine.cpu_buffers import empty_parts
from rnndiag.engine.layer_run import shifted
from rnndiag.engine.transition import gates, step

CHUNK_BYTES = 4 * 2**20
"""Gates of at most this many bytes are computed at once, in chunks of steps, so that they stay in the CPU cache."""

KEPT_BYTES = 64 * 2**20
"""Gates of all steps are kept for the adjoints if they take at most this many bytes."""

Gates = Mapping[str, Tensor]


@torch.no_grad()
def complete_states(
    cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor, h: Tensor, initial: State
) -> tuple[State, Gates | None]:
    """All parts of s_t, (T, B, S_p), from x_t (T, B, I), h_t (T, B, S_h) and s_0; and the gates, if kept."""
    if len(cell.parts) == 1:
        return (h,), None
    if cell.recover is None:
        return (h, *_by_step(cell, weights, inputs, shifted(h, initial[0]), initial)), None
    units, lead = cell.units(weights), h.shape[:2]
    row = h.shape[1] * weights["weight_ih"].shape[0] * h.element_size()
    rest = empty_parts(lead, cell.sizes(weights)[1:], h.dtype, h.device)
    kept: Gates | None = None
    if row * len(h) <= KEPT_BYTES:
        values = empty_parts(lead, [units] * len(cell.gates), h.dtype, h.device)
        kept = dict(zip(cell.gates, values, strict=True))
    state, size = initial, max(1, CHUNK_BYTES // max(1, row))
    for start in range(0, len(h), size):
        rows = slice(start, min(start + size, len(h)))
        found = gates(cell, weights, inputs[rows], (shifted(h, initial[0], rows.start, rows.stop),))
        for whole, part in zip(rest, cell.recover(found, state), strict=True):
            whole[rows] = part
        for name, whole in (kept or {}).items():
            whole[rows] = found[name]
        state = (h[rows][-1], *(part[rows][-1] for part in rest))
    return (h, *rest), kept


def _by_step(
    cell: Cell, weights: Mapping[str, Tensor], inputs: Tensor, before: Tensor, initial: State
) -> State:
    found: list[State] = []
    rest = initial[1:]
    for x, h in zip(inputs, before, strict=True):
        rest = step(cell, weights, x, (h, *rest))[1:]
        found.append(rest)
    return tuple(torch.stack(part) for part in zip(*found, strict=True))
