"""From finished backward passes to what is measured of them, for one pending recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.capture import BackwardPass
from rnndiag.recorder.capture.gathered import gathered
from rnndiag.recorder.facts.labels import label_notes
from rnndiag.recorder.facts.trainer import precision_of, scaling_of
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.measures import Extent, Subject, take
from rnndiag.recorder.output.pending_recording import BACKWARDS, Pending, renamed
from rnndiag.recorder.preflight.glance import NOTE, glance
from rnndiag.recorder.replay.seams import Seams
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.settings import Settings
from rnndiag.stats.time_words import TimeWords


@dataclass
class Reader:
    """Measures the passes of the running batch. `measured` says whether it has in this batch."""

    settings: Settings
    trainer: Any
    module: Any
    faults: Faults
    overhead: Overhead
    first_runs: tuple[LayerRun, ...] = ()
    """The layer runs of the first recording: they describe the model."""
    measured: bool = False
    batch: Any = None
    batch_size: int | None = None
    """Samples a batch, where the loader says so."""
    seams: Seams = field(init=False)
    _layers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.seams = Seams(self.settings, self.module, self.faults, self.overhead)

    def batch_started(self, batch: Any) -> None:
        """Nothing is measured of this batch yet."""
        self.batch, self.measured = batch, False
        self._layers.clear()
        self.seams.batch_started()

    def read(self, pending: Pending, passes: Sequence[BackwardPass]) -> None:
        """Measure the passes into the recording. Of batches that accumulate gradients the first is measured."""
        for seen in passes:
            if told := {**seen.cut, **seen.missed}:
                pending.facts.setdefault("not_measured", {}).update(told)
            if seen.resets:
                pending.facts.setdefault("resets", {}).update(seen.resets)
            together, said = gathered(seen.layer_runs, seen.cut)
            runs = self._named(pending, together)
            if not runs:
                self.seams.read(pending, seen.layer_runs)
                continue
            self.measured = True
            pending.window = max(pending.window, *(run.T for run in runs))
            if not self.first_runs:
                self.first_runs = runs
                self._glance(pending, runs)
            subject = Subject(
                runs,
                made={name: adj for name, adj in seen.adjoints.items() if name not in said},
                gathered=frozenset(said),
                sampling=said,
                words=TimeWords(self.settings.time_unit, self.settings.stride),
                dtype=precision_of(self.trainer) or seen.dtype,
                extent=Extent(
                    samples=self.settings.samples, thrifty=pending.thrifty, seed=pending.step
                ),
            )
            pending.taken.append(take(subject, pending.groups, self.faults, self.overhead.own))
            self._note(pending, runs)
            self.seams.read(pending, seen.layer_runs)

    def _glance(self, pending: Pending, runs: tuple[LayerRun, ...]) -> None:
        """At the first recording: faults of structure that the step shows by itself."""
        if self.settings.preflight:
            with self.faults.guard("the preflight"), self.overhead.own():
                found = glance(runs, self.batch, self.batch_size)
                if found:
                    pending.facts[NOTE] = found

    def _note(self, pending: Pending, runs: tuple[LayerRun, ...]) -> None:
        scaling = scaling_of(self.trainer, self.module)
        if scaling.factor != 1.0:
            pending.facts["scaling"] = scaling.as_json()
        if self.settings.labels is not None:
            with self.faults.guard("labels", "Look at what labels= returns for one batch."):
                pending.facts.update(label_notes(self.settings.labels, self.batch, runs))

    def _named(self, pending: Pending, runs: Sequence[LayerRun]) -> tuple[LayerRun, ...]:
        kept = []
        for run in runs:
            if pending.only_new and run.name in self._layers:
                continue
            number = pending.layers[run.name] = pending.layers.get(run.name, 0) + 1
            if number <= BACKWARDS:
                kept.append(renamed(run, number))
        self._layers.update(pending.layers)
        return tuple(kept)
