"""The recorder of one fit on one rank: the order in which steps are chosen, watched, measured and written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rnndiag.recorder.capture import WATCHING
from rnndiag.recorder.facts.clipping import ClippingSummary
from rnndiag.recorder.facts.gradient_norms import step_facts
from rnndiag.recorder.facts.history import History, Scalar, StepFacts
from rnndiag.recorder.facts.optimizer_setup import training_setup
from rnndiag.recorder.facts.own_clipping import OwnClipping
from rnndiag.recorder.facts.provenance import provenance
from rnndiag.recorder.facts.recurrent_weights import recurrent_weights
from rnndiag.recorder.facts.sharded import refuse_sharded
from rnndiag.recorder.facts.training_loop import TrainingLoop, loss_of
from rnndiag.recorder.facts.weight_change import WeightChange
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.finished_steps import FinishedSteps
from rnndiag.recorder.measures import chosen_measures
from rnndiag.recorder.nested import all_finite
from rnndiag.recorder.output.closing import Cost, close_fit
from rnndiag.recorder.output.directory import RunPlace
from rnndiag.recorder.output.pending_recording import Pending
from rnndiag.recorder.output.run_output import RunOutput
from rnndiag.recorder.reading import Reader
from rnndiag.recorder.replay.black_box import BlackBox
from rnndiag.recorder.schedule.examined_steps import ExaminedSteps
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.schedule.schedule import Decision, WithinBudget, schedule_for
from rnndiag.recorder.schedule.skipped_batches import SkippedBatches
from rnndiag.recorder.settings import Settings
from rnndiag.recorder.watch import Watch
from rnndiag.store.ending import FINISHED

_MOMENTS = (
    *("batch_started", "after_backward", "before_optimizer_step", "batch_ended", "batch_dropped"),
    *("epoch_ended", "paused", "resumed", "finish", "conclude"),
)
_PARTS = {moment: f"the recorder ({moment})" for moment in _MOMENTS}
"""How a fault of a moment is named in messages."""


class FitRecorder:
    """Records one fit: the training loop calls `handle` at each of its moments. Faults are raised only if `strict`.

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
        self.clips = ClippingSummary()
        self._examines = self._examine_next = True
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
        self.run_output = RunOutput(
            place.path,
            self.faults,
            lambda: provenance(loop, self.reader.model, settings.as_json(), self.setup),
            rank=loop.rank,
            world_size=loop.world_size,
            resumed_from_step=place.resumed_from_step,
            max_bytes=settings.max_bytes,
        )
        self.finished = FinishedSteps(
            loop,
            settings.log,
            self.faults,
            self.overhead,
            self.reader,
            self.watch,
            self.layers,
            self.history,
            self.clips,
            self.weights,
            self.run_output,
        )
        self.examined_steps = ExaminedSteps(
            settings.budget, self.finished.gave_up, loop.total_batches, self.overhead.clock
        )
        self.skipped_batches = SkippedBatches(
            loop, self.schedule, self.examined_steps, self.overhead, self.faults
        )
        self._pending: Pending | None = None
        self._decided = -1
        self._batch_step = 0
        self._batch_number = 0
        self._batch_groups: tuple[str, ...] | None = None
        self._batch_not_finite = False
        """Whether a batch since the last optimizer step had a loss and inputs that are not finite."""
        self.unwatched = False
        """Whether nothing of the current batch is watched, so that later moments of it can return at once."""

    def handle(self, moment: str, *facts: Any) -> None:
        """Call one of the methods below; an exception in it is stored as a fault and training continues.

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
            # what was read of the step may be incomplete
            self._pending, self.unwatched = None, False
            self.faults.add(part, error)

    # -- moments of the loop ---------------------------------------------------------------------------------------

    @property
    def is_recording(self) -> bool:
        """Whether the running step is recorded."""
        return self._pending is not None

    def batch_started(self, batch: Any) -> None:
        """Decide whether the batch is recorded, and watch its forward pass."""
        self.reader.batch_started(batch)
        self._batch_number = self.loop.batches
        self._batch_step = self.loop.step
        self._batch_groups = None
        self._begin_step(self._batch_step)
        with self.faults.guard("watching the model"):
            self._watch_next()
        self.unwatched = not (
            self._examines
            or self._pending is not None
            or self.reader.seams.armed
            or self.loop.steps_within_batch
        )
        self.skipped_batches.batch_started(self._tick, self.reader.seams.most)
        self.overhead.batch_started()

    def after_backward(self) -> None:
        """Measure the backward pass that has just ended."""
        if self._pending is not None:
            with self.faults.guard("reading a backward pass"):
                self._measure()
        if self.loop.manual and self._examines:
            with self.faults.guard("reading the gradient norm"):
                self.own_clipping.after_backward()

    def before_optimizer_step(self, optimizer: Any) -> None:
        """Read the gradients, complete, unscaled and not yet clipped, before the weights change."""
        step = self.loop.step if self.loop.manual else self._batch_step
        facts: StepFacts | None = None
        if self._examines:
            with self.faults.guard("reading the gradient norm"):
                facts = step_facts(step, optimizer, self.loop.clip)
                self.own_clipping.before_step(facts)
                self.history.add(facts)
        with self.faults.guard("reading a backward pass"):
            if self._pending is not None:
                self._measure()
            if facts is not None:
                self._record_accident(facts)
            self._batch_not_finite = False
            self.black_box.disarm()
        if self._pending is not None:
            with self.faults.guard("copying the weights"):
                self.weights.before_step()
            self.finished.add(self._pending, facts)
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
        """Finish the batch: the weights have changed, unless gradients are accumulated."""
        loss = loss_of(outputs)
        self._examine_next = False
        self._check_loss(loss, self.reader.batch)
        if not self.unwatched:
            self._end_watched(loss)
        self.reader.batch = None
        plain = self.overhead.batch_ended(self.reader.measured)
        if plain is not None:
            self.examined_steps.plain_step(self._examines, plain)
        if not (self._examine_next or self._pending is not None or self.black_box.waits):
            self.skipped_batches.batch_ended(self._decided)
        if self.skipped_batches.left:
            self.black_box.take_off()
            self.reader.seams.disarm()

    def skip_batch(self) -> bool:
        """Start a batch; return whether the recorder skips it."""
        if self.skipped_batches.next_is_one():
            self.unwatched = True
        return self.skips_batch

    @property
    def skips_batch(self) -> bool:
        """Whether the recorder skips the current batch, except for a check of its loss."""
        return self.skipped_batches.skips

    def check_loss_only(self, outputs: Any, batch: Any) -> None:
        """Check the loss of a skipped batch."""
        # Not `with guard(...)`: every skipped batch would pay for its calls.
        try:
            self._check_loss(loss_of(outputs), batch)
        except Exception as error:  # noqa: BLE001 - no fault may end the training
            self.faults.handler("reading a loss")(error)

    def _check_loss(self, loss: Scalar | None, batch: Any) -> None:
        """Watch the next batch if the loss is not finite: in batches that are not examined nothing else shows it."""
        if isinstance(loss, float) and not math.isfinite(loss):
            self.skipped_batches.stop()
            self._examine_next = True
            with self.faults.guard("reading a batch"):
                self._batch_not_finite = not all_finite(batch)

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
            self.finished.add(self._pending, None)
            self._pending = None
        self.finished.store(loss, in_batch=True)
        with self.faults.guard("watching the model"):
            self.watch.disarm()
            self.black_box.disarm()

    def batch_dropped(self) -> None:
        """Drop a batch that ended with an exception, which the program may catch, and record the next one instead."""
        if (pending := self._pending) is not None:
            self._pending = self._new_pending(pending.step, pending.groups, pending.left_out)
        with self.faults.guard("watching the model"):
            self.watch.disarm()
            self.black_box.disarm()
        self.reader.batch = None
        self.overhead.batch_dropped()

    def paused(self) -> None:
        """Stop the clock of training: validation begins."""
        self.overhead.pause()

    def resumed(self) -> None:
        """Start the clock of training again: validation is over."""
        self.overhead.resume()

    def epoch_ended(self) -> None:
        """Close the epoch's statistics of clipping."""
        with self.faults.guard("summarizing the clipping"):
            for facts in self.history.settle(at_once=True):
                self.clips.add(facts)
            self.clips.end_epoch(self.loop.epoch)

    def finish(self) -> None:
        """Store what is left and close the run after a fit that was not interrupted."""
        self._store_last()
        self.run_output.close(FINISHED, self._last_step)

    def conclude(self) -> None:
        """Write the report and print the screen, after everything else of the fit."""
        if self.loop.rank != 0:
            return
        broke = isinstance(self.schedule, WithinBudget) and self.schedule.over_budget
        nothing = self.finished.nothing_recorded()
        close_fit(
            self.settings,
            self.run_dir,
            # known layers without a gradient are a finding: such a run has a screen and a page
            0 if nothing and not self.layers else self.run_output.count,
            Cost(
                self.overhead.share,
                broke,
                self.overhead.light / self.overhead.training,
                tuple(self.finished.given_up),
            ),
            self.faults,
            self.loop.loggers,
        )
        if nothing:
            print(f"rnndiag: {nothing}")

    def close(self, reason: str) -> None:
        """Remove the hooks and store what was measured, however the fit ended."""
        if reason != FINISHED:
            # the person's own exception is on its way, and stays what it is
            self.faults.strict = False
        self.release()
        if not self.run_output.closed:
            with self.overhead.own():
                self._store_last()
                self.run_output.close(reason, self._last_step)

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
        """The optimizer step of the last batch, skipped or not."""
        return max(self._batch_step, self.loop.step - 1) if self.skips_batch else self._batch_step

    @property
    def _tick(self) -> int:
        """Number of the current batch or optimizer step, whichever the schedule counts."""
        return self._batch_number if self.schedule.by_batch else self._decided

    def _begin_step(self, step: int) -> None:
        """Decide whether this step is recorded. Later steps of one batch add the layers that they alone train."""
        if step == self._decided:
            return
        self._decided = step
        decision = self._decide(self._tick) if self._tick >= self.schedule.next_tick else None
        if decision is not None and decision.record and self.run_output.wants(step):
            self._batch_groups = decision.groups
            self._pending = self._new_pending(step, decision.groups, decision.left_out)
            self._pending.untimed, self._pending.thrifty = decision.untimed, decision.thrifty
        elif self._batch_groups is not None:
            self._pending = self._new_pending(step, self._batch_groups)
            self._pending.only_new = True
        elif note := self.black_box.wants_next():
            self._pending = self._new_pending(step, self.black_box.groups, self.black_box.left_out)
            self._pending.facts["black_box"] = note

    def _new_pending(
        self, step: int, groups: tuple[str, ...], left_out: Mapping[str, str] | None = None
    ) -> Pending:
        epoch = self.loop.epoch
        pending = Pending(step, groups, epoch, self._batch_number, left_out=left_out or {})
        pending.faults_before = self.faults.caught
        return pending

    def _watch_next(self) -> None:
        """Watch the forward passes until the next optimizer step: closely if it is recorded, else for the black box."""
        self.reader.seams.arm(self.schedule.next_tick - self._tick, self._pending)
        self._examines = (
            self._pending is not None or self._examine_next or self.examined_steps.at(self._decided)
        )
        if self._pending is None:
            if self._examines:
                self.black_box.arm()
        elif self.faults.gave_up(WATCHING):
            self._pending = None
        elif not self.watch.armed and self._wants_passes(self._pending):
            self.watch.rescan()
            self.watch.arm(self._pending.groups)

    def _decide(self, tick: int) -> Decision:
        """Ask the schedule; all ranks take the decision of rank 0, since a rank that records makes the others wait."""
        decision = Decision(False, next_tick=tick + 1)
        with self.faults.guard("the schedule"):
            decision = self.schedule.decide(tick)
        if self.loop.world_size > 1 and self.schedule.by_batch:
            decision = self.loop.broadcast(decision)
        self.schedule.adopt(decision)
        return decision

    def _measure(self) -> None:
        """Measure the backward passes since the last call into the pending recording."""
        if self.watch.incomplete:
            self._pending = None
            return
        pending, passes = self._pending, self.watch.new_passes()
        self.finished.refused |= self.watch.unseen
        for seen in passes:
            self.finished.refused |= seen.missed
        self.finished.tried = True
        if pending is not None and self._wants_passes(pending):
            self.reader.read(pending, passes)
        if self.faults.out_of_memory:
            self.watch.disarm()
            self._pending, self.faults.out_of_memory = None, False
        self.faults.succeeded(WATCHING)

    def _wants_passes(self, pending: Pending) -> bool:
        """Whether the running batch belongs to the recording: of accumulated batches, the first is measured."""
        return pending.empty or self._batch_number == pending.batch

    def _record_accident(self, facts: StepFacts) -> None:
        """Record the step if its loss or gradient is not finite or jumps, whatever the schedule said."""
        alarm = self.black_box.alarm(self.history, facts)
        if alarm is None:
            return
        passes = self.watch.passes()
        if self._pending is None:
            box = self.black_box
            self._pending = self._new_pending(facts.step, box.groups, box.left_out)
            passes = passes or box.kept_passes()
            self.reader.read(self._pending, passes)
        note = self.black_box.note_of(alarm, passes)
        finite = not self._batch_not_finite and all_finite(self.reader.batch)
        self._pending.facts["black_box"] = {**note, "batch_finite": finite}

    def _store_last(self) -> None:
        """Write what is left at the end of the fit."""
        pending, self._pending = self._pending, None
        self.finished.store_last(pending)
