"""One fit on one rank: in which order things are decided, watched, measured and written."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rnndiag.recorder.capture import WATCHING
from rnndiag.recorder.facts.batch import all_finite
from rnndiag.recorder.facts.clipping import ClipStory
from rnndiag.recorder.facts.gradient_norms import step_facts
from rnndiag.recorder.facts.history import History, Scalar, StepFacts
from rnndiag.recorder.facts.optimizer_setup import training_setup
from rnndiag.recorder.facts.own_clipping import OwnClipping
from rnndiag.recorder.facts.provenance import provenance
from rnndiag.recorder.facts.recurrent_weights import recurrent_weights
from rnndiag.recorder.facts.sharded import refuse_sharded
from rnndiag.recorder.facts.training_loop import TrainingLoop, loss_of, training_measurements
from rnndiag.recorder.facts.weight_change import WeightChange
from rnndiag.recorder.faults import Faults, logger, tell
from rnndiag.recorder.measures import chosen_measures
from rnndiag.recorder.output.closing import Cost, close_fit
from rnndiag.recorder.output.directory import RunPlace
from rnndiag.recorder.output.last_recording import last_recording
from rnndiag.recorder.output.logger_scalars import log_in_module, log_scalars
from rnndiag.recorder.output.pending_recording import Pending
from rnndiag.recorder.output.run_output import RunOutput
from rnndiag.recorder.reading import Reader
from rnndiag.recorder.replay.black_box import BlackBox
from rnndiag.recorder.schedule.light_looks import LightLooks
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.schedule.schedule import Decision, WithinBudget, schedule_for
from rnndiag.recorder.settings import Settings
from rnndiag.recorder.watch import Watch
from rnndiag.store.ending import FINISHED
from rnndiag.store.layer_names import recurrence
from rnndiag.store.measurement import Measurement

_MOMENTS = (
    *("batch_started", "after_backward", "before_optimizer_step", "batch_ended", "batch_dropped"),
    *("epoch_ended", "paused", "resumed", "finish", "conclude"),
)
_PARTS = {moment: f"the recorder ({moment})" for moment in _MOMENTS}
"""How a fault of a moment is named in messages."""


class FitRecorder:
    """The recorder at work: a training loop calls `handle` with each of its moments. Nothing raises unless `strict`.

    Args:
        settings: What the person asked for.
        loop: The training loop, as a source of facts.
        place: The directory of the run.
        faults: Faults of the recorder itself.
    """

    def __init__(
        self, settings: Settings, loop: TrainingLoop, place: RunPlace, faults: Faults
    ) -> None:
        refuse_sharded(loop.model)
        self.settings, self.loop = settings, loop
        self.run_dir, self.faults = place.path, faults
        self.overhead = Overhead()
        self.history = History()
        self.clips = ClipStory()
        self.looks = LightLooks(settings.budget, self._gave_up, loop.total_batches)
        self._given_up: list[str] = []
        self._looking = self._look_next = True
        self.groups = chosen_measures(settings.measures)
        self.schedule = schedule_for(settings, self.groups, self.overhead, loop)
        self.reader = Reader(settings, loop, self.faults, self.overhead)
        self.black_box = BlackBox(settings, loop, self.groups, self.faults, self.overhead)
        self.own_clipping = OwnClipping(loop)
        self.watch = Watch(
            loop.model,
            lambda: loop.scaling.factor,
            self.faults,
            settings.steps,
            self.overhead.own,
            settings.independent,
        )
        self.layers = recurrent_weights(loop.model, settings.steps)
        self.setup: dict[str, Any] = {}
        with self.faults.guard("reading optimizers and loader"):
            self.setup = training_setup(loop, self.layers)
        self.weights = WeightChange(loop.model, self.layers)
        self.tried = False
        """Whether a step was to be recorded."""
        self.refused: dict[str, str] = {}
        """Module, or what else may be meant as a recurrence -> why it could not be recorded."""
        self.chronicle = RunOutput(
            place.path,
            self.faults,
            lambda: provenance(loop, self.reader.model, settings.as_json(), self.setup),
            rank=loop.rank,
            world_size=loop.world_size,
            resumed_from_step=place.resumed_from_step,
            max_bytes=settings.max_bytes,
        )
        self.added: tuple[Measurement, ...] = ()
        self._pending: Pending | None = None
        self._done: list[tuple[Pending, StepFacts | None]] = []
        self._decided = -1
        self._batch_step = 0
        self._batch_number = 0
        self._batch_groups: tuple[str, ...] | None = None
        self._said_none = False
        self._spoilt_data = False
        """Whether a batch since the last optimizer step held numbers that are not finite, and its loss showed it."""
        self.quiet = False
        """Nothing of the running batch is watched: its backward pass and its optimizer step need no look."""
        self._free = 0
        """Batches from the running one to the next that may be recorded."""
        self.skip = 0
        """So many coming batches need no moment at all, but for a glance at their loss."""
        self.left_alone = False
        """Whether the running batch is one of them."""

    def handle(self, moment: str, *facts: Any) -> None:
        """Call one of the moments below; whatever goes wrong in it, training goes on.

        Args:
            moment: The name of the method.
            *facts: Its arguments.
        """
        part = _PARTS[moment]
        try:
            if self.faults.gave_up(part):
                return
            self.overhead.enter()
            try:
                getattr(self, moment)(*facts)
            finally:
                self.overhead.leave()
            self.faults.succeeded(part)
        except Exception as error:
            if self.faults.strict:
                raise
            self._pending, self.quiet = None, False  # what was read of the step may be incomplete
            self.faults.add(part, error)

    # -- moments of the loop ---------------------------------------------------------------------------------------

    @property
    def is_recording(self) -> bool:
        """Whether the running step is recorded."""
        return self._pending is not None

    def batch_started(self, batch: Any) -> None:
        """Decide, and watch the forward pass that comes."""
        self._free = 0
        self.reader.batch_started(batch)
        self._batch_number = self.loop.batches
        self._batch_step = self.loop.step
        self._batch_groups = None
        self._begin_step(self._batch_step)
        with self.faults.guard("watching the model"):
            self._watch_next()
        self.quiet = not (
            self._looking
            or self._pending is not None
            or self.reader.seams.standing
            or self.loop.steps_within_batch
        )
        self._free = self._free_batches()
        self.overhead.batch_started()

    def after_backward(self) -> None:
        """A backward pass is over."""
        if self._pending is not None:
            with self.faults.guard("reading a backward pass"):
                self._measure()
        if self.loop.manual and self._looking:
            with self.faults.guard("reading the gradient norm"):
                self.own_clipping.after_backward()

    def before_optimizer_step(self, optimizer: Any) -> None:
        """Gradients are complete, unscaled and not yet clipped; weights have not moved."""
        step = self.loop.step if self.loop.manual else self._batch_step
        facts: StepFacts | None = None
        if self._looking:
            with self.faults.guard("reading the gradient norm"):
                facts = step_facts(step, optimizer, self.loop.clip)
                self.own_clipping.before_step(facts)
                self.history.add(facts)
        with self.faults.guard("reading a backward pass"):
            if self._pending is not None:
                self._measure()
            if facts is not None:
                self._judge(facts)
            self._spoilt_data = False
            self.black_box.rest()
        if self._pending is not None:
            with self.faults.guard("copying the weights"):
                self.weights.before_step()
            self._done.append((self._pending, facts))
            self._pending = None
        with self.faults.guard("watching the model"):
            if self.loop.steps_within_batch:
                # a generator's outputs, detached in the discriminator's step, are trained by a later one
                self.watch.forget_spent()
                self._begin_step(step + 1)
                self._watch_next()
            else:  # the optimizer's step needs memory: what was kept of the passes has been measured
                self.watch.disarm()
                self.reader.seams.forget_batch()

    def batch_ended(self, outputs: Any) -> None:
        """The step is over; weights have moved, or not yet where gradients accumulate."""
        loss = loss_of(outputs)
        self._look_next = False
        self._look_at_loss(loss, self.reader.batch)
        if not self.quiet:
            self._end_watched(loss)
        self.reader.batch = None
        plain = self.overhead.batch_ended(self.reader.measured)
        if plain is not None:
            self.looks.plain_step(self._looking, plain)
        self.skip = self._batches_to_skip()
        if self.skip:
            self.overhead.plain += self.skip
            self.black_box.take_off()
            self.reader.seams.rest()

    def leave_alone(self) -> bool:
        """Whether the batch that begins needs no moment at all."""
        self.left_alone = self.skip > 0
        if self.left_alone and self.schedule.wanted is not None:
            with self.faults.guard("the schedule"):
                self.left_alone = not self.schedule.wanted(self.loop.step)
            if not self.left_alone:
                self.overhead.plain -= self.skip
                self.skip = 0
        if self.left_alone:
            self.skip -= 1
            self.quiet = True
        return self.left_alone

    def glance(self, outputs: Any, batch: Any) -> None:
        """The end of a batch that was left alone."""
        try:
            loss = loss_of(outputs)
            if not isinstance(loss, float) or math.isfinite(loss):
                return
        except Exception as error:
            if self.faults.strict:
                raise
            self.faults.add("reading a loss", error)
        else:
            self._look_at_loss(loss, batch)

    def _look_at_loss(self, loss: Scalar | None, batch: Any) -> None:
        """Between two looks, a loss that is not finite is the only sign of an accident: watch the next batch."""
        if isinstance(loss, float) and not math.isfinite(loss):
            self.skip, self._look_next = 0, True
            with self.faults.guard("reading a batch"):
                self._spoilt_data = not all_finite(batch)

    def _batches_to_skip(self) -> int:
        """Batches up to the next look or recording, but for the one before it, which is timed as a plain step.

        Even a few lines of Python cost tens of microseconds in a step, since their code has left the caches.
        """
        waiting = self._look_next or self._pending is not None or self.black_box.waits
        if waiting or self.loop.steps_within_batch:
            return 0
        return max(0, min(self._free, self.looks.until_next(self._decided)) - 2)

    def _free_batches(self) -> int:
        """Batches from the running one to the next that may be recorded, or is watched for one that is."""
        seams = self.reader.seams.most
        if self.schedule.wanted is not None and not seams and self.loop.world_size == 1:
            return sys.maxsize  # `leave_alone` asks at each of them
        tick = self._batch_number if self.schedule.by_batch else self._decided
        return self.schedule.next_tick - tick - seams

    def _end_watched(self, loss: Scalar | None) -> None:
        """Judge the step that was watched, and store what was recorded of it."""
        if self._pending is not None:
            with self.faults.guard("reading a backward pass"):
                self._measure()
        with self.faults.guard("judging the step"):
            self.history.loss(loss, self._batch_step)
            self.own_clipping.after_step(self.history.waiting)
            for facts in self.history.settle(at_once=self.reader.measured):
                self.clips.add(facts)
                self.black_box.loss_alarm(facts.step, facts.loss, facts.norm)
        complete = self.loop.complete_at_batch_end
        if complete and self._pending is not None and not self._pending.empty:
            self._done.append((self._pending, None))
            self._pending = None
        if self._done:
            self._write_done(loss, in_batch=True)
        with self.faults.guard("watching the model"):
            self.watch.disarm()
            self.black_box.rest()

    def batch_dropped(self) -> None:
        """The batch ended with an exception that the program may catch: the next one is recorded in its place."""
        if (pending := self._pending) is not None:
            self._pending = self._new_pending(pending.step, pending.groups, pending.left_out)
        with self.faults.guard("watching the model"):
            self.watch.disarm()
            self.black_box.rest()
        self.reader.batch = None
        self.overhead.batch_dropped()

    def paused(self) -> None:
        """Validation begins: its time is no training."""
        self.overhead.pause()

    def resumed(self) -> None:
        """Validation is over: time counts as training again."""
        self.overhead.resume()

    def epoch_ended(self) -> None:
        """An epoch's story of clipping is complete."""
        with self.faults.guard("telling the story of clipping"):
            for facts in self.history.settle(at_once=True):
                self.clips.add(facts)
            self.clips.end_epoch(self.loop.epoch)

    def finish(self) -> None:
        """The fit ended as it should: store what is left and close the run."""
        self._store_rest()
        self.chronicle.close(FINISHED, self._last_step)

    def conclude(self) -> None:
        """After everything else of the fit: say what it showed."""
        if self.loop.rank != 0:
            return
        broke = isinstance(self.schedule, WithinBudget) and self.schedule.over_budget
        close_fit(
            self.settings,
            self.run_dir,
            # known layers without a gradient are a finding: such a run has a screen and a page
            0 if self._nothing_recorded() and not self.layers else self.chronicle.count,
            Cost(
                self.overhead.share,
                broke,
                self.overhead.light / self.overhead.training,
                tuple(self._given_up),
            ),
            self.faults,
            self.loop.loggers,
        )
        if told := self._nothing_recorded():
            print(f"rnndiag: {told}")

    def close(self, reason: str) -> None:
        """However the fit ended: let go of the model, keep what was measured."""
        if reason != FINISHED:
            # the person's own exception is on its way, and stays what it is
            self.faults.strict = False
        self.release()
        if not self.chronicle.closed:
            with self.overhead.own():
                self._store_rest()
                self.chronicle.close(reason, self._last_step)

    def release(self) -> None:
        """Take all hooks off the model; a second call does nothing."""
        for release in (self.watch.release, self.black_box.release, self.reader.seams.release):
            caught = self.faults.caught
            for _ in range(2):  # an attempt that failed half way leaves hooks on the user's model
                with self.faults.guard("letting go of the model"):
                    release()
                if self.faults.caught == caught:
                    break

    # -- parts -----------------------------------------------------------------------------------------------------

    @property
    def _last_step(self) -> int:
        """The step of the last batch, also where that was left alone."""
        return max(self._batch_step, self.loop.step - 1) if self.left_alone else self._batch_step

    def _begin_step(self, step: int) -> None:
        """Is this step recorded? Within one batch, later steps are recorded for the layers that they alone train."""
        if step == self._decided:
            return
        self._decided = step
        tick = self._batch_number if self.schedule.by_batch else step
        decision = self._decide(tick) if tick >= self.schedule.next_tick else None
        if decision is not None and decision.record and self.chronicle.wants(step):
            self._batch_groups = decision.groups
            self._pending = self._new_pending(step, decision.groups, decision.left_out)
            self._pending.thrifty = decision.thrifty
        elif self._batch_groups is not None:
            self._pending = self._new_pending(step, self._batch_groups)
            self._pending.only_new = True
        elif told := self.black_box.wants_next():
            self._pending = self._new_pending(step, self.black_box.groups, self.black_box.left_out)
            self._pending.facts["black_box"] = told

    def _new_pending(
        self, step: int, groups: tuple[str, ...], left_out: Mapping[str, str] | None = None
    ) -> Pending:
        epoch = self.loop.epoch
        pending = Pending(step, groups, epoch, self._batch_number, left_out=left_out or {})
        pending.faults_before = self.faults.caught
        return pending

    def _watch_next(self) -> None:
        """Watch the forward passes until the next optimizer step: closely if it is recorded, else for the black box."""
        tick = self._batch_number if self.schedule.by_batch else self._decided
        self.reader.seams.stand(self.schedule.next_tick - tick, self._pending)
        self._looking = self._pending is not None or self._look_next or self.looks.at(self._decided)
        if self._pending is None:
            if self._looking:
                self.black_box.stand()
        elif self.faults.gave_up(WATCHING):
            self._pending = None
        elif not self.watch.armed and self._wants_passes(self._pending):
            self.watch.rescan()
            self.watch.arm(lags="lags" in self._pending.groups)

    def _decide(self, tick: int) -> Decision:
        """The schedule's decision; rank 0's for all ranks, as a rank that records makes the others wait."""
        decision = Decision(False, next_tick=tick + 1)
        with self.faults.guard("the schedule"):
            decision = self.schedule.decide(tick)
        if self.loop.world_size > 1 and self.schedule.by_batch:
            decision = self.loop.broadcast(decision)
        self.schedule.adopt(decision)
        return decision

    def _measure(self) -> None:
        """Measure the backward passes since the last call into the pending recording."""
        if self.watch.spoilt:  # what is kept of the passes is incomplete
            self._pending = None
            return
        pending, passes = self._pending, self.watch.new_passes()
        self.refused |= self.watch.unseen
        for seen in passes:
            self.refused |= seen.missed
        self.tried = True
        if pending is not None and self._wants_passes(pending):
            self.reader.read(pending, passes)
        if self.faults.out_of_memory:
            self.watch.disarm()
            self._pending, self.faults.out_of_memory = None, False
        self.faults.succeeded(WATCHING)

    def _wants_passes(self, pending: Pending) -> bool:
        """Whether the running batch belongs to the recording: of accumulated batches, the first is measured."""
        return pending.empty or self._batch_number == pending.batch

    def _judge(self, facts: StepFacts) -> None:
        """Is this step an accident? Then it is recorded, whatever the schedule said."""
        alarm = self.black_box.alarm(self.history, facts)
        if alarm is None:
            return
        passes = self.watch.passes()
        if self._pending is None:
            box = self.black_box
            self._pending = self._new_pending(facts.step, box.groups, box.left_out)
            passes = passes or box.kept_passes()
            self.reader.read(self._pending, passes)
        told = self.black_box.story(alarm, passes)
        finite = not self._spoilt_data and all_finite(self.reader.batch)
        self._pending.facts["black_box"] = {**told, "batch_finite": finite}

    def _write_done(self, loss: Any, in_batch: bool = False) -> None:
        """Store the recordings that are complete; `in_batch`: at the end of a batch, where a module may log."""
        done, self._done = self._done, []
        for pending, facts in done:
            if pending.empty and not self._silent_recurrence(facts):
                self._say_if_none()
                if self.faults.caught > pending.faults_before:
                    self.chronicle.drop(pending.step, self.faults.last)
                else:
                    self.chronicle.add_empty(pending.step)
                continue
            more = (
                training_measurements(facts, loss, self.overhead.spent, self.overhead.share)
                + self.history.measurements()
                + self._step_measurements()
            )
            if clipping := self.clips.drain():
                pending.facts["clipping"] = clipping
            recording = pending.recording(self.loop.rank, tuple(more), self.faults.drain())
            if self.chronicle.append(recording):
                with self.faults.guard("logging scalars"):
                    log_scalars(self.loop, recording, self.settings.log)
                    if in_batch:
                        log_in_module(self.loop, recording, self.settings.log)

    def _step_measurements(self) -> list[Measurement]:
        """What the optimizer step of this batch did to the weights; empty where none was made."""
        found: list[Measurement] = []
        with self.faults.guard("measuring the optimizer's step"):
            seen = self.reader.parameters.items()
            self.weights.name_layers({recurrence(name): own for name, own in seen})
            found = self.weights.measurements(self.loop.optimizers)
            if (metric := self.loop.monitored_metric) is not None:
                found.append(Measurement.of("monitored_metric", np.asarray(metric)))
        return found

    def _silent_recurrence(self, facts: StepFacts | None) -> bool:
        """Whether the model has recurrent layers that no gradient ever went through: a recording says so."""
        return facts is not None and bool(self.layers) and not self.reader.parameters

    def _gave_up(self, sentence: str) -> None:
        """What the budget does not pay for: said with the last recording, and logged."""
        self._given_up.append(sentence)
        logger.info("rnndiag: %s", sentence)

    def _say_if_none(self) -> None:
        """One clear sentence where the model has nothing to record."""
        if not self._said_none and not self.watch.layers and not self.reader.parameters:
            self._said_none = True
            tell(
                f"rnndiag: {type(self.loop.model).__name__} has no recurrent layer that a gradient went through, so "
                "nothing is recorded. nn.RNN, nn.LSTM, nn.GRU, their cells and registered cells would be."
            )

    def _store_rest(self) -> None:
        """What the ring and the clip story still hold goes into a last recording of its own phase."""
        with self.faults.guard("storing the rest"):
            for facts in self.history.settle(at_once=True):
                self.clips.add(facts)
            self.clips.end_epoch(self.loop.epoch)
            if self._pending is not None and not self._pending.empty:
                self._done.append((self._pending, None))
            self._pending = None
            self._write_done(None)
            nothing = self._nothing_recorded()
            if not self.chronicle.opened and not nothing:
                return
            ring, story = self.history.measurements(), self.clips.drain()
            last = last_recording(self.loop, ring, story, self.overhead, self.faults)
            notes = dict(last.notes)
            if nothing:
                notes["nothing_recorded"] = nothing
            if self._given_up:
                notes["given_up"] = self._given_up
            self.chronicle.append(
                replace(last, measurements=(*last.measurements, *self.added), notes=notes)
            )

    def _nothing_recorded(self) -> str:
        """What was seen of a fit in which no recurrence was recorded, why, and what to do; empty if one was."""
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
            else (
                "none of its modules is a known recurrence (nn.RNN, nn.LSTM, nn.GRU, their cells, registered cells)"
            )
        )
        todo = "Name the module that does one step with steps=[...], or mark the state of the loop with rnndiag.carry."
        if names and not refused:
            todo = "Its weights are frozen, or the loss does not reach them: see the diagnosis."
        return f"No recurrence of {model} was recorded: {refused or seen}. {todo}"
