"""From finished backward passes to what is measured of them, for one pending recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.capture import BackwardPass, Loops, runs_beside_loops
from rnndiag.recorder.capture.gathered import gathered
from rnndiag.recorder.facts.labels import label_notes
from rnndiag.recorder.facts.provenance import model_facts
from rnndiag.recorder.facts.training_loop import TrainingLoop
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
    loop: TrainingLoop
    faults: Faults
    overhead: Overhead
    model: dict[str, Any] = field(default_factory=dict)
    """The model as the first recording showed it, for the provenance."""
    parameters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Layer run of the first recording -> qualified names of its parameters."""
    cut_after: int | None = None
    """Steps after which training detaches the state; None: it was not seen to."""
    measured: bool = False
    recorded_any: bool = False
    """Whether a recurrence was measured in this fit."""
    batch: Any = None
    seams: Seams = field(init=False)
    _layers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.seams = Seams(self.settings, self.loop.model, self.faults, self.overhead)

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
            kept, pieces = runs_beside_loops(seen)
            together, said = gathered(kept, seen.cut)
            loops = self._new_loops(pending, seen.loops)
            runs = self._named(pending, together)
            if not runs and not loops.tells:
                self.seams.read(pending, seen.layer_runs)
                continue
            self.measured = self.recorded_any = True
            pending.window = max(
                pending.window, *(run.T for run in runs), *(found.T for found in loops.measured)
            )
            if any(run.tie.startswith("detached:") for run in runs):
                self.cut_after = max(run.T for run in runs)
            if runs and not self.parameters:
                # facts only: the runs hold tensors of the whole batch
                self.parameters = {run.name: tuple(run.parameters.values()) for run in runs}
                self.model = model_facts(self.loop.model, runs)
                self._glance(pending, runs)
            subject = Subject(
                runs,
                loops=loops,
                scale=seen.scale,
                for_proof=pieces,
                made={name: adj for name, adj in seen.adjoints.items() if name not in said},
                gathered=frozenset(said),
                sampling=said,
                words=TimeWords(self.settings.time_unit, self.settings.stride),
                dtype=self.loop.precision or seen.dtype,
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

    def _new_loops(self, pending: Pending, loops: Loops) -> Loops:
        """The loops, without those that an earlier recording of this batch has."""
        names = {found.name for found in loops.measured} | set(loops.open)
        known = self._layers & names if pending.only_new else set()
        self._layers |= names
        return loops.without(known)

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
