"""Locates the first non-finite number of a step: layer, time step, gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rnndiag.engine.adjoints import adjoints
from rnndiag.engine.contributions import contribution_norms
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import preactivations


@dataclass(frozen=True)
class FaultPlace:
    """A place in a layer run, in processing order; fields that do not apply are None."""

    layer: str
    what: str
    """weights | inputs | initial state | states | direct gradient | adjoints | contribution."""
    time: int | None = None
    gate: str | None = None
    part: str | None = None
    unit: int | None = None
    sample: int | None = None
    sentence: str = ""

    def as_json(self) -> dict[str, Any]:
        """The known fields as JSON, for a recording's notes."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@torch.no_grad()
def first_fault(runs: Sequence[LayerRun]) -> FaultPlace | None:
    """The first non-finite entry: forward through the runs in order, then backward."""
    for run in runs:
        if (place := _forward_fault(run)) is not None:
            return place
    for run in reversed(runs):
        if (place := _backward_fault(run)) is not None:
            return place
    return None


def _forward_fault(run: LayerRun) -> FaultPlace | None:
    """Where the forward pass is not finite first: weights, initial state, or the earlier of inputs and states."""
    for key, weight in run.weights.items():
        if not bool(weight.isfinite().all()):
            name = run.parameters.get(key, key)
            sentence = f"The weights {name} of {run.name} were not finite before this step began."
            return FaultPlace(run.name, "weights", sentence=sentence)
    for part, value in zip(run.cell.parts, run.initial, strict=True):
        if not bool(value.isfinite().all()):
            sentence = f"The state {part} that {run.name} was given to start from is not finite."
            return FaultPlace(run.name, "initial state", part=part, sentence=sentence)
    inputs = _first(run, run.inputs)
    states = [
        (part, _first(run, value)) for part, value in zip(run.cell.parts, run.states, strict=True)
    ]
    found = [(place, part) for part, place in states if place is not None]
    if inputs is not None and (not found or inputs[0] <= min(place[0] for place, _ in found)):
        time, sample, unit = inputs
        sentence = (
            f"The input of {run.name} is not finite first, at time step {time} "
            f"(sequence {sample}, entry {unit}): what feeds the layer is at fault."
        )
        return FaultPlace(run.name, "inputs", time, unit=unit, sample=sample, sentence=sentence)
    if not found:
        return None
    # At one time step the later part is the cause: h is computed from it.
    (time, sample, unit), part = min(
        found, key=lambda item: (item[0][0], -run.cell.parts.index(item[1]))
    )
    gate = _gate_at(run, time, sample, unit)
    by = f"gate {gate}" if gate else f"state {part}"
    sentence = (
        f"{run.name} is not finite first at time step {time}, in {by} "
        f"(sequence {sample}, unit {unit})."
    )
    return FaultPlace(run.name, "states", time, gate, part, unit, sample, sentence)


def _gate_at(run: LayerRun, time: int, sample: int, unit: int) -> str | None:
    """The first gate of that unit with a non-finite value, or else with a non-finite pre-activation."""
    cell = run.cell
    if cell.pointwise is None:
        return None
    before = tuple(part[time : time + 1, sample] for part in run.previous())
    a_ih, a_hh = preactivations(cell, run.weights, run.inputs[time : time + 1, sample], before[0])
    units = cell.units(run.weights)
    if cell.activations is not None:
        values = cell.activations(a_ih, a_hh, before, **cell.extra_weights(run.weights))
        for name, value in values.items():
            if not bool(value.isfinite().all()):
                return str(name)
    by_gate = a_ih.unflatten(-1, (-1, units))
    for name, value in zip(cell.gates, by_gate.unbind(-2), strict=False):
        if not bool(value.isfinite().all()):
            return name
    return None


def _backward_fault(run: LayerRun) -> FaultPlace | None:
    """A non-finite gradient where the forward pass was finite."""
    adj = adjoints(run)
    # The backward pass runs from the last step to the first: the latest place came first.
    last = _last(run, adj.state)
    if last is None:
        return None
    time, sample, unit = last
    direct = torch.cat(run.direct, -1)[time, sample]
    if not bool(direct.isfinite().all()):
        sentence = (
            f"The gradient that reaches {run.name} from above is not finite first, at time step {time} "
            f"(sequence {sample}): the loss, or what lies between, is at fault."
        )
        return FaultPlace(
            run.name, "direct gradient", time, unit=unit, sample=sample, sentence=sentence
        )
    gate = _gate_of_adjoint(run, adj.a_hh, time + 1, sample)
    by = f", through gate {gate} of step {time + 1}" if gate else ""
    sentence = (
        f"Back through time, the gradient of {run.name} is not finite first at time step {time}{by} "
        f"(sequence {sample}, unit {unit})."
    )
    return FaultPlace(run.name, "adjoints", time, gate, None, unit, sample, sentence)


def _gate_of_adjoint(run: LayerRun, a_hh: Tensor | None, time: int, sample: int) -> str | None:
    if a_hh is None or time >= run.T:
        return None
    blocks = a_hh[time, sample].unflatten(-1, (len(run.cell.blocks), -1))
    not_finite = (~blocks.isfinite()).any(-1)
    return run.cell.blocks[int(not_finite.int().argmax())] if bool(not_finite.any()) else None


def _first(run: LayerRun, values: Tensor) -> tuple[int, int, int] | None:
    """(time, sample, unit) of the first valid entry that is not finite."""
    places = (~values.isfinite() & run.mask()[..., None]).nonzero()
    if not len(places):
        return None
    time, sample, unit = places[0].tolist()
    return time, sample, unit


def _last(run: LayerRun, values: Tensor) -> tuple[int, int, int] | None:
    """(time, sample, unit) of a non-finite entry in the last time step that has one."""
    places = (~values.isfinite() & run.mask()[..., None]).nonzero()
    if not len(places):
        return None
    time = int(places[:, 0].max())
    first: list[int] = places[places[:, 0] == time][0].tolist()
    return time, first[1], first[2]


@torch.no_grad()
def largest_contribution(runs: Sequence[LayerRun]) -> FaultPlace | None:
    """Where a finite gradient is largest: layer, time step and gate with the largest |g_t| of W_hh."""
    best: tuple[float, FaultPlace] | None = None
    for run in runs:
        norms = contribution_norms(adjoints(run)).get("weight_hh")
        if norms is None:
            continue
        size, time = (float(value) for value in norms.norm.max(0))
        if best is not None and not size > best[0]:
            continue
        at = int(time)
        gate = None
        if norms.gate_norm is not None and len(run.cell.blocks) > 1:
            gate = run.cell.blocks[int(norms.gate_norm[:, at].argmax())]
        by = f" in gate {gate}" if gate else ""
        sentence = f"The largest part arises in {run.name} at time step {at}{by}."
        best = size, FaultPlace(run.name, "contribution", at, gate, sentence=sentence)
    return None if best is None else best[1]
