"""One fit on one rank: in which order things are decided, watched, measured and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rnndiag.recorder.black_box import BlackBox
from rnndiag.recorder.capture import BackwardPass
from rnndiag.recorder.chronicle import Chronicle
from rnndiag.recorder.clipping import ClipStory
from rnndiag.recorder.closing import Cost, close_fit
from rnndiag.recorder.faults import Faults, tell
from rnndiag.recorder.gradients import step_facts
from rnndiag.recorder.history import History, StepFacts
from rnndiag.recorder.labels import label_notes
from rnndiag.recorder.ledger import Ledger
from rnndiag.recorder.logged import log_scalars
from rnndiag.recorder.measures import Extent, Subject, chosen_measures, take
from rnndiag.recorder.pending import BACKWARDS, Pending, renamed
from rnndiag.recorder.provenance import provenance
from rnndiag.recorder.schedule import Decision, WithinBudget
from rnndiag.recorder.schedule_for import schedule_for
from rnndiag.recorder.settings import Settings
from rnndiag.recorder.training_facts import (
    batches_so_far,
    clip_of,
    loss_of,
    precision_of,
    scaling_of,
    step_of,
    training_measurements,
)
from rnndiag.recorder.watch import Watch
from rnndiag.run.measurement import Measurement
from rnndiag.run.recording import Recording

BLACK_BOX_GROUPS = ("contributions", "gates")
_ACCIDENT = "this step was recorded for its accident"


class FitRecorder:
    """The recorder at work. Every method is a moment of the training loop; none raises unless `strict`."""

    def __init__(
        self,
        settings: Settings,
        trainer: Any,
        module: Any,
        run_dir: Path,
        resumed_from_step: int | None,
    ) -> None:
        self.settings, self.trainer, self.module = settings, trainer, module
        self.run_dir = run_dir
        self.faults = Faults(settings.strict)
        self.ledger = Ledger()
        self.history = History()
        self.clips = ClipStory()
        self.black_box = BlackBox(settings.jump) if settings.black_box else None
        self.groups = chosen_measures(settings.measures)
        self.schedule = schedule_for(settings, self.groups, self.ledger, trainer, module)
        self.watch = Watch(module, lambda: scaling_of(trainer, module).factor, self.faults)
        self.chronicle = Chronicle(
            run_dir,
            self.faults,
            self._provenance,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            resumed_from_step=resumed_from_step,
        )
        self.added: tuple[Measurement, ...] = ()
        self._first_runs: tuple[Any, ...] = ()
        self._pending: Pending | None = None
        self._done: list[tuple[Pending, StepFacts | None]] = []
        self._decided = -1
        self._batch: Any = None
        self._batch_step = 0
        self._batch_number = 0
        self._measured = False
        self._batch_layers: set[str] = set()
        self._batch_groups: tuple[str, ...] | None = None
        self._said_none = False
        self._precision = precision_of(trainer)

    # -- moments of the loop ---------------------------------------------------------------------------------------

    def batch_started(self, batch: Any) -> None:
        """Decide, and watch the forward pass that comes."""
        with self.ledger.own():
            self._batch = batch
            self._batch_number = batches_so_far(self.trainer)
            self._measured = False
            self._batch_step = step_of(self.trainer, self.module)
            self._batch_layers, self._batch_groups = set(), None
            self._begin_step(self._batch_step)
            if self._pending is not None or self.black_box is not None:
                with self.faults.guard("watching the model"):
                    if self._pending is not None:
                        self.watch.rescan()
                    self.watch.arm()
        self.ledger.batch_started()

    def after_backward(self) -> None:
        """A backward pass is over."""
        if self._pending is not None:
            with self.ledger.own(), self.faults.guard("reading a backward pass"):
                self._measure(self.watch.new_passes())

    def before_optimizer_step(self, optimizer: Any) -> None:
        """Gradients are complete, unscaled and not yet clipped; weights have not moved."""
        with self.ledger.own():
            step = step_of(self.trainer, self.module)
            facts: StepFacts | None = None
            with self.faults.guard("reading the gradient norm"):
                facts = step_facts(step, optimizer, clip_of(self.trainer))
                self.history.add(facts)
            with self.faults.guard("reading a backward pass"):
                if self._pending is not None:
                    self._measure(self.watch.new_passes())
                if facts is not None:
                    self._judge(facts)
            if self._pending is not None:
                self._done.append((self._pending, facts))
                self._pending = None
            if not self.module.automatic_optimization:
                self.watch.forget()
                self._begin_step(step + 1)

    def batch_ended(self, outputs: Any) -> None:
        """The step is over; weights have moved, or not yet where gradients accumulate."""
        with self.ledger.own():
            loss = loss_of(outputs)
            with self.faults.guard("reading a backward pass"):
                if self._pending is not None:
                    self._measure(self.watch.new_passes())
            self.history.loss(loss, self._batch_step)
            with self.faults.guard("judging the step"):
                for facts in self.history.settle(at_once=self._measured):
                    self.clips.add(facts)
            raw = not self.module.automatic_optimization
            if raw and self._pending is not None and not self._pending.empty:
                self._done.append((self._pending, None))
                self._pending = None
            self._write_done(loss)
            with self.faults.guard("watching the model"):
                self.watch.disarm()
            self._batch = None
        self._count_cost(self._measured)

    def epoch_ended(self) -> None:
        """An epoch's story of clipping is complete."""
        with self.ledger.own(), self.faults.guard("telling the story of clipping"):
            for facts in self.history.settle(at_once=True):
                self.clips.add(facts)
            self.clips.end_epoch(self.trainer.current_epoch)

    def finish(self) -> None:
        """The fit ended as it should: store what is left and close the run."""
        with self.ledger.own():
            self._store_rest()
            self.chronicle.close("finished")

    def conclude(self) -> None:
        """After everything else of the fit: say what it showed. A fit without a progress bar prints nothing."""
        if self.trainer.global_rank != 0:
            return
        broke = isinstance(self.schedule, WithinBudget) and self.ledger.share > self.settings.budget
        quiet = self.trainer.progress_bar_callback is None
        close_fit(
            self.settings,
            self.run_dir,
            self.chronicle.count,
            Cost(self.ledger.share, broke),
            self.faults,
            quiet,
        )

    def close(self, reason: str) -> None:
        """However the fit ended: let go of the model, keep what was measured."""
        if reason != "finished":
            # the person's own exception is on its way, and stays what it is
            self.faults.strict = False
        with self.faults.guard("letting go of the model"):
            self.watch.release()
        if not self.chronicle.closed:
            with self.ledger.own():
                self._store_rest()
                self.chronicle.close(reason)

    # -- parts -----------------------------------------------------------------------------------------------------

    def _begin_step(self, step: int) -> None:
        """Is this step recorded? Within one batch, later steps are recorded for the layers that they alone train."""
        if step == self._decided:
            return
        self._decided = step
        decision = self._decide(batches_so_far(self.trainer) if self.schedule.by_batch else step)
        groups, only_new = decision.groups, False
        if not decision.record:
            if self._batch_groups is None:
                return
            groups, only_new = self._batch_groups, True
        self._batch_groups = groups
        self._pending = Pending(
            step,
            groups,
            epoch=int(self.trainer.current_epoch),
            batch=self._batch_number,
            only_new=only_new,
            left_out=decision.left_out,
        )

    def _decide(self, tick: int) -> Decision:
        """The schedule's decision; rank 0's for all ranks, as a rank that records makes the others wait."""
        if tick < self.schedule.next_tick:
            return Decision(False, next_tick=self.schedule.next_tick)
        decision = Decision(False, next_tick=tick + 1)
        with self.faults.guard("the schedule"):
            decision = self.schedule.decide(tick)
        if self.trainer.world_size > 1 and self.schedule.by_batch:
            decision = self.trainer.strategy.broadcast(decision)
        self.schedule.adopt(decision)
        return decision

    def _measure(self, passes: list[BackwardPass]) -> None:
        """Measure finished backward passes into the pending recording."""
        pending = self._pending
        if pending is None or (self._batch_number != pending.batch and not pending.empty):
            return  # of accumulated batches the first one is recorded
        for seen in passes:
            runs = self._named(pending, seen.layer_runs)
            if seen.missed:
                pending.facts.setdefault("not_measured", {}).update(seen.missed)
            if not runs:
                continue
            self._measured = True
            if not self._first_runs:
                self._first_runs = runs
            subject = Subject(
                runs,
                made=seen.adjoints,
                dtype=self._precision or seen.dtype,
                extent=Extent(samples=self.settings.samples, seed=pending.step),
            )
            pending.taken.append(take(subject, pending.groups, self.faults, self.ledger.own))
            scaling = scaling_of(self.trainer, self.module)
            if scaling.factor != 1.0:
                pending.facts["scaling"] = scaling.as_json()
            if self.settings.labels is not None:
                with self.faults.guard("labels"):
                    pending.facts.update(label_notes(self.settings.labels, self._batch, runs))

    def _named(self, pending: Pending, runs: tuple[Any, ...]) -> tuple[Any, ...]:
        kept = []
        for run in runs:
            if pending.only_new and run.name in self._batch_layers:
                continue
            number = pending.layers[run.name] = pending.layers.get(run.name, 0) + 1
            if number <= BACKWARDS:
                kept.append(renamed(run, number))
        self._batch_layers.update(pending.layers)
        return tuple(kept)

    def _judge(self, facts: StepFacts) -> None:
        """Is this step an accident? Then it is recorded, whatever the schedule said."""
        if self.black_box is None:
            return
        alarm = self.black_box.alarm(self.history, facts)
        if alarm is None:
            return
        if self._pending is None:
            groups = tuple(name for name in BLACK_BOX_GROUPS if name in self.groups)
            self._pending = Pending(
                facts.step,
                groups,
                epoch=int(self.trainer.current_epoch),
                batch=self._batch_number,
                left_out=dict.fromkeys(set(self.groups) - set(groups), _ACCIDENT),
            )
            self._measure(self.watch.passes())
        runs = [run for seen in self.watch.passes() for run in seen.layer_runs]
        self._pending.facts["black_box"] = self.black_box.story(alarm, runs)

    def _write_done(self, loss: Any) -> None:
        done, self._done = self._done, []
        for pending, facts in done:
            if pending.empty:
                self._say_if_none()
                continue
            more = (
                training_measurements(facts, loss, self.ledger.spent, self.ledger.share)
                + self.history.measurements()
            )
            if clipping := self.clips.drain():
                pending.facts["clipping"] = clipping
            recording = pending.recording(
                self.trainer.global_rank, tuple(more), self.faults.drain()
            )
            if self.chronicle.append(recording):
                with self.faults.guard("logging scalars"):
                    log_scalars(self.trainer, recording, self.settings.log)

    def _say_if_none(self) -> None:
        """One clear sentence where the model has nothing to record."""
        if not self._said_none and not self.watch.layers and not self._first_runs:
            self._said_none = True
            tell(
                f"rnndiag: {type(self.module).__name__} has no recurrent layer that a gradient went through, so "
                "nothing is recorded. nn.RNN, nn.LSTM, nn.GRU, their cells and registered cells would be."
            )

    def _store_rest(self) -> None:
        """What the ring and the clip story still hold goes into a last recording of its own phase."""
        with self.faults.guard("storing the rest"):
            for facts in self.history.settle(at_once=True):
                self.clips.add(facts)
            self.clips.end_epoch(self.trainer.current_epoch)
            if self._pending is not None and not self._pending.empty:
                self._done.append((self._pending, None))
            self._pending = None
            self._write_done(float("nan"))
            if not self.chronicle.opened:
                return
            notes: dict[str, Any] = {"clipping": self.clips.drain(), "errors": self.faults.drain()}
            notes["overhead"] = {"seconds": self.ledger.spent, "share": self.ledger.share}
            step = step_of(self.trainer, self.module)
            measured = (
                training_measurements(None, float("nan"), self.ledger.spent, self.ledger.share)
                + self.history.measurements()
                + list(self.added)
            )
            self.chronicle.append(
                Recording(
                    step=step,
                    phase="end",
                    rank=self.trainer.global_rank,
                    epoch=int(self.trainer.current_epoch),
                    measurements=tuple(measured),
                    notes={key: value for key, value in notes.items() if value},
                )
            )

    def _count_cost(self, recorded: bool) -> None:
        groups = sum(self.ledger.by_group.values())
        cost = self.ledger.batch_ended(recorded)
        if recorded:
            self.ledger.recording_cost(max(0.0, cost - (groups - self._groups_before)))
        self._groups_before = groups

    _groups_before = 0.0

    def _provenance(self) -> dict[str, Any]:
        return provenance(self.trainer, self.module, self.settings.as_json(), self._first_runs)
