"""Statistics of gates and units over time and units: saturation, openness, time constants, dead units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra.jacobians import require_finite, stretch
from rnndiag.engine.spectra.summary import four_numbers
from rnndiag.engine.transition import gates

LOW, HIGH = 0.05, 0.95
"""Gates outside of LOW..HIGH are shut or open; a unit with a mean activation derivative below LOW is saturated."""

CHUNK_BYTES, NUMBERS = 64 * 2**20, 24
"""Stretches take about CHUNK_BYTES of memory, estimated from NUMBERS numbers per step, sequence and unit."""


@dataclass(frozen=True)
class GateStatistics:
    """Statistics of one layer run over valid steps; None for what its cell does not have."""

    layer: str
    gates: tuple[str, ...]
    """The gates with values in (0, 1)."""
    low: Tensor
    """Share of each gate's activations below 0.05, (gates,) over steps, sequences and units."""
    high: Tensor
    """Share above 0.95, (gates,)."""
    mean: Tensor
    """Mean activation of each gate by step, (gates, T) over sequences and units; NaN where no sequence has the step."""
    unit_low: Tensor
    """Share below 0.05 by unit, (gates, H) over steps and sequences."""
    unit_high: Tensor
    """Share above 0.95 by unit, (gates, H)."""
    unit_mean: Tensor
    """Mean activation by unit, (gates, H)."""
    forget_time: Tensor | None
    """1/(1 - f) in steps, f the share of the state carried on; inf where f = 1. Mean, 5, 50, 95 % quantile (4,)."""
    unit_forget_time: Tensor | None
    """1/(1 - mean f) of each unit in steps, (H,)."""
    openness: Tensor | None
    """Mean 1 - f by step, (T,): the share of the state that is replaced (a GRU's update gate, whatever its sign)."""
    activation_derivative: Tensor | None
    """D_t, φ' of the state's activation: mean, 5, 50, 95 % quantile over sequences and units by step, (T, 4)."""
    unit_derivative: Tensor | None
    """Mean φ' of each unit, (H,)."""
    saturated_units: float | None
    """Share of units whose mean φ' is below 0.05."""
    dead_units: float | None
    """Share of relu units that are exactly zero at every step of every sequence."""

    def rows(self) -> dict[str, Tensor]:
        """The stored quantities by name; what the cell has not is left out."""
        rows: dict[str, Tensor] = {}
        if self.gates:
            rows |= {"gate_low": self.low, "gate_high": self.high, "gate_mean": self.mean}
        for name in ("forget_time", "activation_derivative", "saturated_units", "dead_units"):
            value = getattr(self, name)
            if value is not None:
                rows[name] = torch.as_tensor(value, dtype=torch.float64)
        return rows

    def coordinates(self) -> dict[str, tuple[str, ...]]:
        """Labels of the dims of `rows`."""
        return {"gate": self.gates}


@torch.no_grad()
def gate_statistics(run: LayerRun) -> GateStatistics | None:
    """Statistics of gates and units over all existing steps, in float64.

    Cost: one evaluation of the gates of all steps. Memory: some steps at a time, and T * B * H numbers for the
        quantiles of the time constants.

    Args:
        run: A layer run.

    Returns:
        Saturation, openness, time constants and dead units; None for a cell that names no activations.

    Raises:
        NotExact: A state or a weight is not finite.

    Example:
        >>> rnndiag.gate_statistics(layer_run).gates
        ('i', 'f', 'o')
    """
    if run.cell.activations is None:
        return None
    require_finite(run)
    steps = max(1, CHUNK_BYTES // (8 * NUMBERS * run.B * run.cell.units(run.weights)))
    parts = [
        _Stretch(stretch(run, start, min(start + steps, run.T))) for start in range(0, run.T, steps)
    ]
    return _joined(run, parts)


class _Stretch:
    """Sums over the valid steps of a stretch; (gates, H) and (gates, T') as in the result, nothing larger is kept."""

    def __init__(self, run: LayerRun) -> None:
        mask, values = run.mask(), _activations(run)
        gates = [values[name] for name in run.cell.sigmoid_gates]
        units = run.cell.units(run.weights)
        empty = run.states[0].new_zeros(0, units, dtype=torch.float64)
        alive = torch.stack([gate[mask] for gate in gates]) if gates else empty.unsqueeze(1)
        self.count = int(mask.sum())
        self.low = (alive < LOW).double().sum(1)
        self.high = (alive > HIGH).double().sum(1)
        self.total = alive.sum(1)
        self.by_step = [_by_step(gate, mask) for gate in gates]
        self.kept: Tensor | None = None
        self.carried: Tensor | None = None
        self.openness: Tensor | None = None
        if run.cell.carry is not None:
            carry = run.cell.carry(values)
            self.carried = carry[mask].sum(0)
            wide = torch.promote_types(run.dtype, torch.float32)
            self.kept = (1 / (1 - carry[mask])).flatten().to(wide)
            self.openness = _by_step(1 - carry, mask)
        self.slope: Tensor | None = None
        self.slopes: Tensor | None = None
        if run.cell.derivative is not None:
            slope = run.cell.derivative(run.states[0].double())
            self.slope = slope[mask].sum(0)
            absent = slope.masked_fill(~mask.unsqueeze(-1), torch.nan)
            self.slopes = four_numbers(absent.flatten(1))
        self.lives = (run.states[0][mask] != 0).any(0) if run.cell.dies_at_zero else None


def _joined(run: LayerRun, parts: list[_Stretch]) -> GateStatistics:
    """The statistics of the whole run from sums and quantities of its stretches of steps."""
    count = sum(part.count for part in parts)
    units = [_sum([getattr(part, name) for part in parts]) for name in ("low", "high", "total")]
    low, high, mean = (value / count for value in units if value is not None)
    by_step = [torch.cat(pieces) for pieces in zip(*(part.by_step for part in parts), strict=True)]
    carried = _sum([part.carried for part in parts])
    slope = _sum([part.slope for part in parts])
    lives = _sum([None if part.lives is None else part.lives.double() for part in parts])
    kept = _all([part.kept for part in parts])
    return GateStatistics(
        layer=run.name,
        gates=run.cell.sigmoid_gates,
        low=low.mean(1),
        high=high.mean(1),
        mean=torch.stack(by_step) if by_step else low.mean(1),
        unit_low=low,
        unit_high=high,
        unit_mean=mean,
        forget_time=None if kept is None else four_numbers(kept).double(),
        unit_forget_time=None if carried is None else 1 / (1 - carried / count),
        openness=_all([part.openness for part in parts]),
        activation_derivative=_all([part.slopes for part in parts]),
        unit_derivative=None if slope is None else slope / count,
        saturated_units=None if slope is None else float((slope / count < LOW).double().mean()),
        dead_units=None if lives is None else float((lives == 0).double().mean()),
    )


def _all(pieces: Sequence[Tensor | None]) -> Tensor | None:
    """The pieces of all stretches concatenated; None if there are none."""
    known = [piece for piece in pieces if piece is not None]
    return torch.cat(known) if known else None


def _sum(pieces: Sequence[Tensor | None]) -> Tensor | None:
    """The sum over the pieces of all stretches; None if there are none."""
    known = [piece for piece in pieces if piece is not None]
    return torch.stack(known).sum(0) if known else None


def _activations(run: LayerRun) -> Mapping[str, Tensor]:
    """The value of every gate, (T, B, H) float64, from the recorded states."""
    exact = run.to(dtype=torch.float64)
    return gates(exact.cell, exact.weights, exact.inputs, exact.previous())


def _by_step(values: Tensor, mask: Tensor) -> Tensor:
    """(T, B, H) -> (T,): mean over valid sequences and over units; NaN if no sequence has the step."""
    total = torch.where(mask.unsqueeze(-1), values, 0.0).sum((-2, -1))
    return total / (mask.sum(1) * values.shape[-1])
