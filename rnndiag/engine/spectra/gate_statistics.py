"""What gates and units do, over time and units: saturation, openness, time constants, dead units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra.finite import require_finite
from rnndiag.engine.spectra.summary import four_numbers
from rnndiag.engine.transition import preactivations

LOW, HIGH = 0.05, 0.95
"""A gate beyond these is shut or open; a unit whose mean activation derivative stays below LOW is saturated."""


@dataclass(frozen=True)
class GateStatistics:
    """Statistics of one layer run; what its cell has not is None. Padding is left out everywhere."""

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
    """Mean 1 - f by step, (T,): the share of the state that is written anew (a GRU's update, whichever sign it has)."""
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
    """Statistics of gates and units over the steps that exist, float64. None for a cell that names no activations.

    Cost: one evaluation of the gates of all steps; memory: a few times gates*T*B*H numbers.
    """
    if run.cell.activations is None:
        return None
    require_finite(run)
    values = _activations(run)
    mask = run.mask()
    chosen = [values[name] for name in run.cell.sigmoid_gates]
    empty = run.states[0].new_zeros(0, dtype=torch.float64)
    if chosen:
        gates = torch.stack(chosen)
        alive = gates[:, mask]
        shut, wide = (alive < LOW).double(), (alive > HIGH).double()
        low, high, mean = shut.mean((1, 2)), wide.mean((1, 2)), _by_step(gates, mask)
        units = (shut.mean(1), wide.mean(1), alive.mean(1))
    else:
        low = high = mean = empty
        units = (empty, empty, empty)
    forget_time, unit_forget_time, openness = _carried(run, values, mask)
    derivative, unit_derivative, saturated = _derivative(run, mask)
    return GateStatistics(
        layer=run.name,
        gates=run.cell.sigmoid_gates,
        low=low,
        high=high,
        mean=mean,
        unit_low=units[0],
        unit_high=units[1],
        unit_mean=units[2],
        forget_time=forget_time,
        unit_forget_time=unit_forget_time,
        openness=openness,
        activation_derivative=derivative,
        unit_derivative=unit_derivative,
        saturated_units=saturated,
        dead_units=_dead(run, mask),
    )


def _activations(run: LayerRun) -> Mapping[str, Tensor]:
    """The value of every gate, (T, B, H) float64, from the recorded states."""
    exact = run.to(dtype=torch.float64)
    before = exact.previous()
    a_ih, a_hh = preactivations(exact.cell, exact.weights, exact.inputs, before[0])
    assert exact.cell.activations is not None
    return exact.cell.activations(a_ih, a_hh, before, **exact.cell.extra_weights(exact.weights))


def _by_step(values: Tensor, mask: Tensor) -> Tensor:
    """(..., T, B, H) -> (..., T): mean over the sequences that have the step, and over units; NaN where none has."""
    total = torch.where(mask.unsqueeze(-1), values, 0.0).sum((-2, -1))
    return total / (mask.sum(1) * values.shape[-1])


def _carried(
    run: LayerRun, values: Mapping[str, Tensor], mask: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if run.cell.carry is None:
        return None, None, None
    kept = run.cell.carry(values)
    alive = kept[mask]
    times = four_numbers((1 / (1 - alive)).flatten())
    return times, 1 / (1 - alive.mean(0)), _by_step(1 - kept, mask)


def _derivative(run: LayerRun, mask: Tensor) -> tuple[Tensor | None, Tensor | None, float | None]:
    if run.cell.derivative is None:
        return None, None, None
    slope = run.cell.derivative(run.states[0].double())
    by_unit = slope[mask].mean(0)
    kept = slope.masked_fill(~mask.unsqueeze(-1), torch.nan)
    return four_numbers(kept.flatten(1)), by_unit, float((by_unit < LOW).double().mean())


def _dead(run: LayerRun, mask: Tensor) -> float | None:
    if not run.cell.dies_at_zero:
        return None
    return float((run.states[0][mask] == 0).all(0).double().mean())
