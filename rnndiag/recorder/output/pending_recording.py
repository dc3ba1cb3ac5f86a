"""A recording in progress: collects the backward passes of one training step until the optimizer step is over."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rnndiag.recorder.measures import Taken
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import MODEL
from rnndiag.store.recording import VERDICTS, Recording, Verdict

WINDOW = "window_in_use"

BACKWARDS = 4
"""Number of backward passes through one layer that are recorded separately; later ones are only counted."""


@dataclass
class Pending:
    """One step that is being recorded."""

    step: int
    groups: tuple[str, ...]
    epoch: int | None = None
    batch: int | None = None
    only_new: bool = False
    """Record only layers that no other recording of this batch has: each optimizer of the batch has its own
    recording."""
    untimed: bool = False
    """Whether no training step has been timed yet under a budget."""
    thrifty: bool = False
    """Whether to skip optional parts because the budget is short."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    """Layer -> backward passes seen."""
    taken: list[Taken] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    window: int = 0
    """The largest number of steps that a backward pass covered."""
    faults_before: int = 0
    """Faults of the recorder when the recording began; if it stays empty after further faults it was lost."""

    @property
    def empty(self) -> bool:
        """Whether no layer was seen."""
        return not any(taken.measurements or taken.notes for taken in self.taken)

    def recording(self, rank: int, more: tuple[Measurement, ...], errors: list[str]) -> Recording:
        """Everything as one recording, with the worst verdict of its backward passes."""
        verdict: Verdict = max(
            (taken.verdict for taken in self.taken), key=VERDICTS.index, default="unverified"
        )
        notes: dict[str, Any] = dict(self.facts)
        reasons: dict[str, str] = {}
        for taken in self.taken:
            merge(notes, taken.notes)
            for layer, reason in taken.reasons.items():
                reasons.setdefault(layer, reason)
        if self.left_out:
            notes["not_measured"] = {**self.left_out, **notes.get("not_measured", {})}
        unread = {name: n - BACKWARDS for name, n in self.layers.items() if n > BACKWARDS}
        for name, count in unread.items():
            notes.setdefault("not_measured", {})[name] = (
                f"{count} more backward passes of this step went through it; the first {BACKWARDS} are recorded"
            )
        if errors:
            notes["errors"] = errors
        return Recording(
            step=self.step,
            rank=rank,
            time=time.time(),
            epoch=self.epoch,
            batch=self.batch,
            verdict=verdict,
            reasons=reasons,
            measurements=(*self._measurements(), *more),
            notes=notes,
        )

    def _measurements(self) -> list[Measurement]:
        """Measurements of all backward passes. Quantities of the whole model are taken from the first pass that has
        them."""
        found: dict[tuple[str, str], Measurement] = {}
        for taken in self.taken:
            for measurement in taken.measurements:
                found.setdefault((measurement.name, measurement.layer), measurement)
        if self.window:
            found[WINDOW, MODEL] = Measurement.of(WINDOW, float(self.window))
        return list(found.values())


def merge(notes: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add notes; tables of the same name are merged."""
    for key, value in more.items():
        known = notes.get(key)
        if isinstance(known, dict) and isinstance(value, Mapping):
            notes[key] = {**known, **value}
        else:
            notes[key] = value


def renamed(run: Any, number: int) -> Any:
    """The layer run of backward pass `number` of a step: `rnn.l0`, then `rnn.l0@2`."""
    return run if number <= 1 else replace(run, name=f"{run.name}@{number}")
