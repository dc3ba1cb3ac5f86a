"""Turns measured steps into recordings with the facts of the training step, and writes them when the step has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rnndiag.engine.cells import KNOWN_RECURRENCES
from rnndiag.recorder.facts.clipping import ClippingSummary
from rnndiag.recorder.facts.history import History, Scalar, StepFacts
from rnndiag.recorder.facts.training_loop import TrainingLoop, training_measurements
from rnndiag.recorder.facts.weight_change import WeightChange
from rnndiag.recorder.faults import Faults, logger, warn
from rnndiag.recorder.output.logger_scalars import log_in_module, log_scalars
from rnndiag.recorder.output.pending_recording import Pending
from rnndiag.recorder.output.run_output import RunOutput
from rnndiag.recorder.reading import Reader
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.settings import LogChoice
from rnndiag.recorder.watch import Watch
from rnndiag.store.layer_names import recurrence
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording


@dataclass
class FinishedSteps:
    """The measured steps of one fit on one rank, until they are written."""

    loop: TrainingLoop
    log: LogChoice
    faults: Faults
    overhead: Overhead
    reader: Reader
    watch: Watch
    layers: Mapping[str, Sequence[str]]
    """The recurrent layers of the model, recorded or not."""
    history: History
    clips: ClippingSummary
    weights: WeightChange
    run_output: RunOutput
    added: tuple[Measurement, ...] = ()
    """Measurements added by the user, stored with the last recording."""
    tried: bool = False
    """Whether a step was to be recorded."""
    refused: dict[str, str] = field(default_factory=dict)
    """Module -> why its calls could not be recorded."""
    given_up: list[str] = field(default_factory=list)
    """Sentences on what the budget does not pay for."""
    _done: list[tuple[Pending, StepFacts | None]] = field(default_factory=list)
    _warned: bool = False

    def add(self, pending: Pending, facts: StepFacts | None) -> None:
        """Add a measured step; `store` writes it when its batch has ended."""
        self._done.append((pending, facts))

    def gave_up(self, sentence: str) -> None:
        """Log a sentence on what the budget does not pay for, and store it with the last recording."""
        self.given_up.append(sentence)
        logger.info("rnndiag: %s", sentence)

    def store(self, loss: Scalar | None, in_batch: bool = False) -> None:
        """Write the recordings that are complete; `in_batch`: at the end of a batch, where a module may log."""
        done, self._done = self._done, []
        for pending, facts in done:
            if pending.empty and not self._no_layer_trained(facts):
                self._warn_if_no_layer()
                if self.faults.caught > pending.faults_before:
                    self.run_output.drop(pending.step, self.faults.last)
                else:
                    self.run_output.add_empty(pending.step)
                continue
            more = (
                training_measurements(facts, loss, self.overhead.spent, self.overhead.share)
                + self.history.measurements()
                + self._step_measurements()
            )
            if clipping := self.clips.drain():
                pending.facts["clipping"] = clipping
            recording = pending.recording(self.loop.rank, tuple(more), self.faults.drain())
            if self.run_output.append(recording):
                with self.faults.guard("logging scalars"):
                    log_scalars(self.loop, recording, self.log)
                    if in_batch:
                        log_in_module(self.loop, recording, self.log)

    def _step_measurements(self) -> list[Measurement]:
        """Measure the change of the weights by the optimizer step; empty if there was none."""
        found: list[Measurement] = []
        with self.faults.guard("measuring the optimizer's step"):
            seen = self.reader.parameters.items()
            self.weights.name_layers({recurrence(name): own for name, own in seen})
            found = self.weights.measurements(self.loop.optimizers)
            if (metric := self.loop.monitored_metric) is not None:
                found.append(Measurement.of("monitored_metric", np.asarray(metric)))
        return found

    def _no_layer_trained(self, facts: StepFacts | None) -> bool:
        """Whether the model has recurrent layers but none received a gradient, which is worth a recording."""
        return facts is not None and bool(self.layers) and not self.reader.parameters

    def _warn_if_no_layer(self) -> None:
        """Warn the user once that the model has no recurrent layer to record."""
        if not self._warned and not self.watch.layers and not self.reader.parameters:
            self._warned = True
            warn(
                f"rnndiag: {type(self.loop.model).__name__} has no recurrent layer that a gradient went through, so "
                f"nothing is recorded. {KNOWN_RECURRENCES} would be."
            )

    def store_last(self, pending: Pending | None) -> None:
        """Write a last recording, in a phase of its own, with the rest of the history and of the clipping."""
        with self.faults.guard("storing the rest"):
            for facts in self.history.settle(at_once=True):
                self.clips.add(facts)
            self.clips.end_epoch(self.loop.epoch)
            if pending is not None and not pending.empty:
                self.add(pending, None)
            self.store(None)
            nothing = self.nothing_recorded()
            if not self.run_output.opened and not nothing:
                return
            self.run_output.append(self._last_recording(nothing))

    def _last_recording(self, nothing: str) -> Recording:
        """A recording with a phase of its own, so that it never replaces the recording of a step."""
        notes = {
            "clipping": self.clips.drain(),
            "errors": self.faults.drain(),
            "overhead": {"seconds": self.overhead.spent, "share": self.overhead.share},
            "nothing_recorded": nothing,
            "given_up": self.given_up,
        }
        measured = training_measurements(None, None, self.overhead.spent, self.overhead.share)
        return Recording(
            step=self.loop.step,
            phase="end",
            rank=self.loop.rank,
            epoch=self.loop.epoch,
            measurements=(*measured, *self.history.measurements(), *self.added),
            notes={key: value for key, value in notes.items() if value},
        )

    def nothing_recorded(self) -> str:
        """Say why no recurrence was recorded and what to do; empty if one was."""
        if self.reader.recorded_any or not self.tried:
            return ""
        model = type(self.loop.model).__name__
        refused = "; ".join(
            f"{name or 'the model'}: {why.rstrip('.')}" for name, why in self.refused.items()
        )
        names = ", ".join(name or model for name in self.watch.layers or self.layers)
        seen = (
            f"it has {names}, but no gradient went through them in a recorded step"
            if names
            else f"none of its modules is a known recurrence ({KNOWN_RECURRENCES})"
        )
        todo = "Name the module that does one step with steps=[...], or mark the state of the loop with rnndiag.carry."
        if names and not refused:
            todo = "Its weights are frozen, or the loss does not reach them: see the diagnosis."
        return f"No recurrence of {model} was recorded: {refused or seen}. {todo}"
