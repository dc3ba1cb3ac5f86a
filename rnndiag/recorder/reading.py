"""Measures finished backward passes into one pending recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.capture import BackwardPass
from rnndiag.recorder.facts.labels import label_notes
from rnndiag.recorder.facts.provenance import model_facts
from rnndiag.recorder.facts.training_loop import TrainingLoop
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.measures import Extent, take
from rnndiag.recorder.output.pending_recording import Pending
from rnndiag.recorder.pass_subject import names_of, subject_of
from rnndiag.recorder.preflight.glance import NOTE, glance
from rnndiag.recorder.replay.seams import Seams
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.settings import Settings
from rnndiag.stats.time_words import TimeWords


@dataclass
class Reader:
    """Measures the passes of the running batch. `measured`: whether any pass of this batch was measured."""

    settings: Settings
    loop: TrainingLoop
    faults: Faults
    overhead: Overhead
    model: dict[str, Any] = field(default_factory=dict)
    """Facts on the model from the first recording, for the provenance."""
    parameters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a layer run in the first recording -> qualified names of its parameters."""
    cut_after: int | None = None
    """Number of steps after which training detaches the state; None: no detach was observed."""
    measured: bool = False
    recorded_any: bool = False
    """Whether a recurrence was measured in this fit."""
    batch: Any = None
    seams: Seams = field(init=False)
    _layers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.seams = Seams(self.settings, self.loop.model, self.faults, self.overhead)

    def batch_started(self, batch: Any) -> None:
        """Reset for a new batch."""
        self.batch, self.measured = batch, False
        self._layers.clear()
        self.seams.batch_started()

    def read(self, pending: Pending, passes: Sequence[BackwardPass]) -> None:
        """Measure the passes into the recording. Of several batches with accumulated gradients the first is
        measured."""
        for seen in passes:
            extent = Extent(
                self.settings.samples,
                max_memory=self.settings.max_memory,
                untimed=pending.untimed,
                thrifty=pending.thrifty,
                seed=pending.step,
            )
            known = self._layers if pending.only_new else set()
            subject = subject_of(pending, seen, extent, known)
            self._layers |= names_of(pending, seen)
            if subject is not None:
                self.measured = self.recorded_any = True
                if any(run.tie.startswith("detached:") for run in subject.runs):
                    self.cut_after = max(run.T for run in subject.runs)
                subject.words = TimeWords(self.settings.time_unit, self.settings.stride)
                subject.dtype = self.loop.precision or seen.dtype
                if subject.runs and not self.parameters:
                    self._describe(pending, subject.runs)
                pending.taken.append(take(subject, pending.groups, self.faults, self.overhead.own))
                self._note(pending, subject.runs)
            self.seams.read(pending, seen.layer_runs)

    def _describe(self, pending: Pending, runs: tuple[LayerRun, ...]) -> None:
        """Store facts on the model at the first recording; facts only, since runs hold the tensors of the whole
        batch."""
        self.parameters = {run.name: tuple(run.parameters.values()) for run in runs}
        self.model = model_facts(self.loop.model, runs)
        self._glance(pending, runs)

    def _glance(self, pending: Pending, runs: tuple[LayerRun, ...]) -> None:
        """At the first recording, check for structural faults that are visible in the step itself."""
        if self.settings.preflight:
            with self.faults.guard("the preflight"), self.overhead.own():
                found = glance(runs, self.batch, self.loop.batch_size)
                if found:
                    pending.facts[NOTE] = found

    def _note(self, pending: Pending, runs: tuple[LayerRun, ...]) -> None:
        scaling = self.loop.scaling
        if scaling.factor != 1.0:
            pending.facts["scaling"] = scaling.as_json()
        if self.settings.labels is not None:
            with self.faults.guard("labels", "Look at what labels= returns for one batch."):
                pending.facts.update(label_notes(self.settings.labels, self.batch, runs))
