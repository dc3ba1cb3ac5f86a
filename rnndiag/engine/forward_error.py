"""The forward error: states recomputed from the record, one step at a time, against the recorded ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import flat_step


class ForwardGap:
    """Adds up |recomputed − recorded|² over stretches of steps; steps past a sequence's end count for nothing."""

    def __init__(self, run: LayerRun, wide: bool = False) -> None:
        """wide: square in double precision."""
        self._run, self._wide = run, wide or run.dtype.itemsize <= 2
        self._keep = None if run.lengths is None else run.mask()[..., None]
        self._off = torch.zeros((), dtype=torch.float64, device=run.device)

    def add(self, out: State, start: int, stop: int) -> None:
        """Steps start..stop-1 as a cell's `pointwise` gave them, h before its projection."""
        weight_hr = self._run.weights.get("weight_hr")
        h = out[0] if weight_hr is None else linear(out[0], weight_hr)
        self.add_states((h, *out[1:]), start, stop)

    def add_states(self, states: State, start: int, stop: int) -> None:
        """Steps start..stop-1 as whole states."""
        for value, recorded in zip(states, self._run.states, strict=True):
            self._off += self._square(value - recorded[start:stop], start, stop)

    def _square(self, values: Tensor, start: int, stop: int) -> Tensor:
        if self._keep is not None:
            values = torch.where(self._keep[start:stop], values, torch.zeros_like(values))
        flat = values.flatten().double() if self._wide else values.flatten()
        return (flat @ flat).double()

    def relative(self) -> float | None:
        """|recomputed − recorded| / |recorded| over all steps that were added; None: their squares overflow."""
        size = sum(self._square(part, 0, self._run.T) for part in self._run.states)
        off, size = float(self._off) ** 0.5, float(size) ** 0.5
        if not off + size < float("inf"):
            return float("nan") if self._wide else None
        return 0.0 if off == 0.0 else off / size if size > 0.0 else float("inf")


@torch.no_grad()
def forward_error(run: LayerRun) -> float:
    """The forward error of all steps at once, for any cell."""
    gap = ForwardGap(run, wide=True)
    gap.add_states(flat_step(run.cell, run.weights, run.inputs, run.previous()), 0, run.T)
    found = gap.relative()
    assert found is not None
    return found
