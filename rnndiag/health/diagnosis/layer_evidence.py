"""The recorded evidence on one recurrent layer: credit, gates, units, steps and size of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnndiag.health.diagnosis.recorded import Recorded, Row

CARRY_GATES = ("f", "z")
"""Gates that decide how much of the state is kept: f of an LSTM, z of a GRU in torch's notation."""
LARGEST_LOG = 700.0
"""exp of a larger number overflows a float64."""
DEAD = 0.5
"""From this share of relu units that are zero at every step of every sequence on, a layer counts as dead."""
NEGLIGIBLE = math.log(1e-6)
"""Credit below this share of lag 0 is not used to fit its decay."""


@dataclass(frozen=True)
class Dated:
    """A number and the training step of its recording."""

    value: float
    step: int

    def above(self, limit: float) -> bool:
        """Whether the number exceeds the limit; False for NaN."""
        return self.value > limit

    def below(self, limit: float) -> bool:
        """Whether the number is below the limit; False for NaN."""
        return self.value < limit


NOTHING = Dated(math.nan, -1)
"""Stands for a number that was not recorded: NaN, so neither above nor below any limit."""


@dataclass(frozen=True)
class Credit:
    """A credit profile at one recording: ln of the credit at lag 0, 1, ... relative to lag 0."""

    log: np.ndarray
    step: int

    @property
    def last_lag(self) -> int:
        """The longest measured lag."""
        return len(self.log) - 1

    def at(self, lag: int) -> Dated:
        """ln c(lag), with its step; beyond the profile the value at its end, -inf if no credit arrives."""
        value = float(self.log[min(lag, self.last_lag)])
        return Dated(-math.inf if math.isnan(value) else value, self.step)

    @property
    def far(self) -> Dated:
        """ln c at the last lag."""
        return self.at(self.last_lag) if self.last_lag > 0 else NOTHING

    @property
    def per_step(self) -> Dated:
        """Factor by which credit changes per lag, over lags where it is not negligible."""
        known = self.log[: max(3, int(np.sum(self.log > NEGLIGIBLE)))]
        known = known[np.isfinite(known)]
        if len(self.log) < 3 or len(known) < 2:
            return NOTHING
        slope = (known[-1] - known[0]) / (len(known) - 1)
        return Dated(math.exp(min(slope, LARGEST_LOG)), self.step)


@dataclass(frozen=True)
class LayerEvidence:
    """The evidence on one recurrence. Pairs hold the values at the first and the last recording."""

    name: str
    cell: str
    """lstm, gru, elman_tanh, elman_relu, or the name of a custom cell."""
    length: int
    """Time steps of all its calls in one training step."""
    chunk: int
    """Time steps of its longest call."""
    credit: tuple[Credit | None, Credit | None]
    carry_gate: tuple[Dated, Dated]
    """Mean of f or z."""
    gates_at_ends: tuple[Dated, Dated]
    """Share of values of the other gates that are below 0.05 or above 0.95."""
    saturated: tuple[Dated, Dated]
    """Share of saturated units."""
    derivative: tuple[Dated, Dated]
    """Mean derivative of the state's activation function."""
    dead: tuple[Dated, Dated]
    """Share of dead units."""
    update: tuple[Dated, ...]
    """|Δθ| / |θ| at every recording."""
    growth: tuple[Dated, ...]
    """|θ| / |θ_0| at every recording."""
    weight_norm: Dated
    swing: Mapping[int, float]
    """Step -> swing, in units of the loss."""
    input_spread: Dated
    input_mean: Dated
    way_at_start: Dated
    """Distance |Δθ| / |θ| in which a typical sequence's gradient removes the loss at the first recording."""
    seam_share: Dated
    """Share of the credit beyond the cut: median of the last recordings."""
    gradient_norm: Dated
    """Gradient norm of its recurrent parameters in the last recording."""

    @property
    def gated(self) -> bool:
        """Whether it has a gate that keeps its state."""
        return not math.isnan(self.carry_gate[0].value)

    @property
    def elman(self) -> bool:
        """Whether it is a recurrence without gates, tanh or relu."""
        return self.cell.startswith("elman") or not (self.gated or self.cell in ("lstm", "gru"))


def layer_evidence(recorded: Recorded, name: str, cell: str, stack: str | None) -> LayerEvidence:
    """Extract the evidence on one layer; `stack` is the name under which its stack was recorded, if any."""
    profiles = recorded.rows("credit_profile", name)
    gates = recorded.rows("gate_mean", name)
    lengths = [row.values.shape[0] for row in _at(recorded.rows("valid_samples", name), 0)]
    return LayerEvidence(
        name=name,
        cell=cell or _cell_by_quantities(recorded, name),
        length=sum(lengths),
        chunk=max(lengths, default=0),
        credit=(_credit(profiles, 0), _credit(profiles, -1)),
        carry_gate=_ends(gates, _carry),
        gates_at_ends=_gates_at_ends(recorded, name),
        saturated=_ends(recorded.rows("saturated_units", name), _mean),
        derivative=_ends(recorded.rows("activation_derivative", name), _mean_stat),
        dead=_ends(recorded.rows("dead_units", name), _mean),
        update=_dated(recorded.rows("update_ratio", name)),
        growth=_dated(recorded.rows("weight_growth", name)),
        weight_norm=dated_at(recorded.rows("weight_norm", name), -1),
        swing=_sums(recorded.rows("swing", name)),
        input_spread=dated_at(recorded.rows("input_spread", name), 0),
        input_mean=dated_at(recorded.rows("input_mean", name), 0),
        way_at_start=_way_at_start(recorded, name),
        seam_share=_seam(recorded, (name, *((stack,) if stack else ()))),
        gradient_norm=_norm(recorded.rows("gradient_norm", name)),
    )


def _cell_by_quantities(recorded: Recorded, name: str) -> str:
    if recorded.rows("dead_units", name):
        return "elman_relu"
    return "elman_tanh" if recorded.rows("saturated_units", name) else ""


def _at(rows: tuple[Row, ...], which: int) -> tuple[Row, ...]:
    """The rows of the first (`which` = 0) or last (-1) recording that has any."""
    return tuple(row for row in rows if row.step == rows[which].step) if rows else ()


def _credit(rows: tuple[Row, ...], which: int) -> Credit | None:
    """The longest credit profile among the calls of one recording."""
    found = [row for row in _at(rows, which) if row.values.shape[0] > 1]
    if not found:
        return None
    longest = max(found, key=lambda row: row.values.shape[0])
    labels = longest.labels.get("profile_stat", ())
    column = labels.index("profile") if "profile" in labels else 0
    return Credit(longest.values[:, column], longest.step)


def _ends(rows: tuple[Row, ...], number: Any) -> tuple[Dated, Dated]:
    """A number at the first and at the last recording, averaged over calls."""
    found = []
    for which in (0, -1):
        chosen = _at(rows, which)
        values = [value for row in chosen if not math.isnan(value := number(row))]
        found.append(Dated(float(np.mean(values)), chosen[0].step) if values else NOTHING)
    return found[0], found[1]


def _mean(row: Row) -> float:
    return _known_mean(row.values)


def _known_mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.mean(known)) if known.size else math.nan


def _mean_stat(row: Row) -> float:
    """Mean over time of the statistic `mean`, of dims (time, stat)."""
    labels = row.labels.get("stat", ())
    values = row.values[..., labels.index("mean")] if "mean" in labels else row.values
    return _known_mean(values)


def _carry(row: Row) -> float:
    labels = row.labels.get("gate", ())
    at = next((labels.index(gate) for gate in CARRY_GATES if gate in labels), None)
    return math.nan if at is None else _known_mean(row.values[at])


def _others(row: Row) -> float:
    labels = row.labels.get("gate", ())
    kept = [i for i, gate in enumerate(labels) if gate not in CARRY_GATES]
    return _known_mean(row.values[kept])


def _gates_at_ends(recorded: Recorded, name: str) -> tuple[Dated, Dated]:
    low, high = (_ends(recorded.rows(f"gate_{end}", name), _others) for end in ("low", "high"))
    first, last = (Dated(a.value + b.value, a.step) for a, b in zip(low, high, strict=True))
    return first, last


def _dated(rows: Iterable[Row]) -> tuple[Dated, ...]:
    found = {row.step: row.number for row in rows if not math.isnan(row.number)}
    return tuple(Dated(value, step) for step, value in found.items())


def dated_at(rows: tuple[Row, ...], which: int) -> Dated:
    """The number of the first (`which` = 0) or last (-1) of these rows, with its step."""
    return Dated(rows[which].number, rows[which].step) if rows else NOTHING


def _sums(rows: Iterable[Row]) -> dict[int, float]:
    found: dict[int, float] = {}
    for row in rows:
        found[row.step] = found.get(row.step, 0.0) + row.number
    return found


def _norm(rows: tuple[Row, ...]) -> Dated:
    """Norm over all parameters, from one call: all calls share one gradient."""
    last = _at(rows, -1)
    if not last:
        return NOTHING
    return Dated(float(np.linalg.norm(np.nan_to_num(last[0].values))), last[0].step)


def _way_at_start(recorded: Recorded, name: str) -> Dated:
    """L / (G |θ|) at the first recording, with G the root mean square of the gradient norms of single sequences.

    G² = (B - 1) σ² + |g|², from the noise σ and the gradient g of the batch. Unlike |g| it does not vanish where
    sequences pull in different directions, as they do in a net that has learned no more than a constant.
    """
    noise, whole = recorded.rows("noise", name), recorded.rows("full_gradient_norm", name)
    first = _at(noise, 0)
    if not first:
        return NOTHING
    step = first[0].step
    batch = max(
        (float(row.values.max()) for row in recorded.rows("valid_samples", name)), default=0
    )
    square = sum((batch - 1) * row.number**2 for row in first)
    square += sum(row.number**2 for row in whole if row.step == step)
    sizes = [row.number for row in recorded.rows("weight_norm", name) if row.step == step]
    losses = [row.number for row in recorded.rows("loss") if row.step == step]
    if not (sizes and losses and 0 < square < math.inf and sizes[0] > 0):
        return NOTHING
    return Dated(abs(losses[0]) / (math.sqrt(square) * sizes[0]), step)


def _seam(recorded: Recorded, names: Iterable[str]) -> Dated:
    rows = [row for name in names for row in recorded.rows("seam_share", name)]
    known = sorted((r for r in rows if math.isfinite(r.number)), key=lambda row: row.step)[-3:]
    if not known:
        return NOTHING
    return Dated(float(np.median([row.number for row in known])), known[-1].step)
