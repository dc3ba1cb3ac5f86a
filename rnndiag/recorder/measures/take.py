"""Runs groups of measures on one backward pass, isolated so that an error in one leaves the others intact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from rnndiag.errors import NotSupported
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.measures.graph_lags import graph_contributions, graph_lags
from rnndiag.recorder.measures.measure import MEASURES, Measure, Subject
from rnndiag.recorder.measures.memory import refuse_contributions
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import MODEL
from rnndiag.store.recording import VERDICTS, Verdict


@dataclass
class Taken:
    """The measurements of one backward pass."""

    measurements: list[Measurement] = field(default_factory=list)
    verdict: Verdict = "unverified"
    reasons: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """Preserve random states and record no graph, so that measuring does not influence training."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def take(
    subject: Subject,
    groups: Sequence[str],
    faults: Faults,
    timer: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> Taken:
    """Measure the groups; an error is reported once, noted under `not_measured`, and leaves the others intact."""
    taken = Taken()
    loops = subject.loops
    if not subject.runs and not loops.tells:
        return taken
    device = subject.runs[0].device if subject.runs else torch.device("cpu")
    try:
        refuse_contributions(subject.runs, subject.extent.max_memory)
    except NotSupported as limit:
        # every other group rests on them, or on their proof
        taken.reasons = {run.name: str(limit) for run in subject.runs}
        taken.notes = {"not_measured": dict.fromkeys(groups, str(limit))}
        return taken
    with untouched(device):
        _take_loops(subject, taken, set(groups))
        for group in groups:
            if faults.out_of_memory:  # the step's recording is given up
                return taken
            if faults.gave_up(f"measuring {group}"):
                subject.not_measured.setdefault(group, "it failed before, see the errors")
                continue
            count = faults.caught
            with timer(group):
                _take_group(MEASURES[group], subject, taken, faults)
            if faults.caught > count:
                subject.not_measured[group] = faults.last
        with faults.guard("proving the contributions"):
            _set_verdict(subject, taken)
    taken.notes = {
        key: value
        for key, value in (
            ("sampling", subject.sampling),
            ("not_measured", subject.not_measured),
            *subject.facts.items(),
        )
        if value
    }
    return taken


def _take_loops(subject: Subject, taken: Taken, groups: set[str]) -> None:
    """Add the measurements made on the graph before the backward pass, and why others were not made."""
    loops, names = subject.loops, {run.name for run in subject.runs}
    for found in loops.measured:
        if found.name not in names and "contributions" in groups:
            taken.measurements += graph_contributions(found, subject.scale)
        if "lags" in groups:
            taken.measurements += graph_lags(found, subject.scale)
    for name, why in loops.open.items():
        subject.not_measured[f"lags of {name}"] = f"open: {why}"
    if loops.measured:
        together = "they feed each other, so their states are cut together"
        subject.facts["on_graph"] = {
            found.name: together
            if found.name in loops.members
            else loops.reasons.get(found.name, "its state is marked by carry")
            for found in loops.measured
        }


_OF_LAGS = ("lags", "estimators")
"""Groups that need e_t to hold only what the loss sends directly."""


def _take_group(measure: Measure, subject: Subject, taken: Taken, faults: Faults) -> None:
    """Take one group of measures; the reason for a layer without it goes into `not_measured`."""
    what = f"measuring {measure.name}"
    if measure.of_all is not None:
        with faults.guard(what):
            taken.measurements.extend(measure.of_all(subject))
    if measure.of_layer is None:
        return
    for run in subject.runs:
        if run.open and measure.name in _OF_LAGS:
            why = "open" if run.loop in subject.loops.open else "measured on the graph"
            if measure.name != "lags" or run.loop in subject.loops.open:
                subject.not_measured[f"{measure.name} of {run.loop}"] = f"{why}: {run.open}"
            continue
        if measure.needs_finite and not subject.finite(run):
            subject.not_measured[f"{measure.name} of {run.name}"] = (
                "its inputs, states or gradients are not finite"
            )
            continue
        with faults.guard(what):
            try:
                taken.measurements.extend(measure.of_layer(subject, run))
            except NotSupported as limit:
                subject.not_measured[f"{measure.name} of {run.name}"] = str(limit)


def _set_verdict(subject: Subject, taken: Taken) -> None:
    """Store the proof's verdict, and its reasons by layer."""
    loops = subject.loops
    if not subject.runs and not subject.for_proof:
        taken.verdict = "exact" if loops.measured else "unverified"
        _set_verdict_of_loops(subject, taken)
        return
    proof = subject.proof
    taken.verdict = proof.verdict
    for reason in proof.reasons:
        owners = [
            run.name
            for run in subject.runs
            if reason in run.notes
            or any(name in reason for name in (run.name, *run.parameters.values()))
        ]
        for owner in owners or [MODEL]:
            taken.reasons[owner] = "; ".join(filter(None, (taken.reasons.get(owner), reason)))
    _set_verdict_of_loops(subject, taken)


def _set_verdict_of_loops(subject: Subject, taken: Taken) -> None:
    """Withdraw the reach of open loops."""
    for name, why in subject.loops.open.items():
        taken.verdict = max(taken.verdict, "open", key=VERDICTS.index)
        reason = f"open: {why}"
        taken.reasons[name] = "; ".join(filter(None, (taken.reasons.get(name), reason)))
