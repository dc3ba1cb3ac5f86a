"""Joins one-step calls that carry no state into one run over a larger batch.

A layer that is called fifty times a step would otherwise give fifty runs of one step, at fifty times the work and with
too many numbers to read. The sums over runs, and so the proof, are unchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun

_SAID = "{} calls of one step each are taken together, as one step of {} sequences"


def gathered(
    runs: Sequence[LayerRun], names: Iterable[str]
) -> tuple[tuple[LayerRun, ...], dict[str, str]]:
    """The runs, with those of each recurrence in `names` joined if possible, and a sentence for each joined run."""
    wanted = set(names)
    groups: dict[str, list[LayerRun]] = defaultdict(list)
    for run in runs:
        groups[run.name.partition("#")[0] if wanted else run.name].append(run)
    found: list[LayerRun] = []
    said: dict[str, str] = {}
    for name, own in groups.items():
        if name in wanted and all(_alike(own[0], run) for run in own):
            one = _joined(name, own)
            said[name] = _SAID.format(len(own), one.B)
            found.append(one)
        else:
            found += own
    return tuple(found), said


def _alike(first: LayerRun, run: LayerRun) -> bool:
    """Whether both runs are one step of the same cell with the same weights."""
    same = run.cell is first.cell and run.weights.keys() == first.weights.keys()
    return (
        (same and run.T == 1 and run.lengths is None and run.sizes == first.sizes)
        and run.inputs.shape[-1] == first.inputs.shape[-1]
        and all(
            value is first.weights[key] or torch.equal(value, first.weights[key])
            for key, value in run.weights.items()
        )
    )


def _joined(name: str, runs: list[LayerRun]) -> LayerRun:
    first = runs[0]
    return replace(
        first,
        name=name,
        inputs=torch.cat([run.inputs for run in runs], 1),
        states=_parts([run.states for run in runs], 1),
        initial=_parts([run.initial for run in runs], 0),
        direct=_parts([run.direct for run in runs], 1),
        input_gradient=_all_or_none([run.input_gradient for run in runs]),
        initial_gradient=None,
        gates=None,
        tie="given",
        notes=tuple(dict.fromkeys(note for run in runs for note in run.notes)),
    )


def _parts(states: list[State], dim: int) -> State:
    return tuple(torch.cat(parts, dim) for parts in zip(*states, strict=True))


def _all_or_none(values: list[Tensor | None]) -> Tensor | None:
    known = [value for value in values if value is not None]
    return torch.cat(known, 1) if len(known) == len(values) else None
