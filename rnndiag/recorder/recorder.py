"""Recorder: the work of the callback in hand-written training loops."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rnndiag.errors import BadArgument
from rnndiag.recorder.facts.plain_loop import PlainLoop, unwrapped_optimizers
from rnndiag.recorder.faults import Faults, warn
from rnndiag.recorder.fit import FitRecorder
from rnndiag.recorder.measures import chosen_measures
from rnndiag.recorder.output.directory import RunPlace, chosen_directory, default_directory
from rnndiag.recorder.probe import require_model
from rnndiag.recorder.settings import settings_from
from rnndiag.report.notebook import run_html
from rnndiag.store.ending import FINISHED, reason_of
from rnndiag.store.measurement import Measurement
from rnndiag.store.text import counted

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rnndiag.recorder.settings import Options


class Recorder:
    """Records, in any training loop, how far back the gradients of a model's recurrent layers reach.

    It writes a run as `rnndiag.GradientDiagnostics` does: within a budget of the training time, with the history of
    every step, a black box for accidents, and a report at the end. It does not influence training: the
    weights are bit-identical to those of the loop without it. Its own errors are reported once, and training continues.

    Args:
        model: The module that is trained (a wrapper of Fabric, DistributedDataParallel or torch.compile is looked
            through).
        dirpath: Where the run is written; None: `runs/<date and time>`. If a run is there already, this one is
            written to `<dirpath>-2`; see `run_dir`.
        optimizer: The torch optimizer, or a list of them. Its steps are counted, and the gradients that it
            receives after clipping are read. None: every `recorder.step()` counts as one optimizer step.
        total_steps: Number of calls of `recorder.step()` in the whole training, if known; recordings are then spread
            over all of it.
        loss_scale: Returns the factor of a scaled loss (of a GradScaler: `scaler.get_scale`). Not needed where
            `step.backward` runs the backward pass, which sees the factor.
        **options: Those of `rnndiag.GradientDiagnostics`.

    Example:
        >>> with rnndiag.Recorder(model, "runs/exp1", optimizer=optimizer) as recorder:
        ...     for batch in loader:
        ...         with recorder.step() as step:
        ...             step.backward(loss_of(model, batch))
        ...         optimizer.step()
        ...         optimizer.zero_grad()
    """

    def __init__(
        self,
        model: nn.Module,
        dirpath: str | Path | None = None,
        optimizer: Any = None,
        *,
        total_steps: int | None = None,
        loss_scale: Callable[[], float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        require_model("Recorder", model, loss_scale)
        if total_steps is not None and total_steps < 1:
            raise BadArgument(
                f"total_steps is {total_steps}.", "It must be a number from 1 up, or None."
            )
        if "need" in options:
            raise BadArgument(
                "Recorder has no validation batches for need.",
                "Call rnndiag.memory_need(model, batches, loss_fn) after training.",
            )
        self._settings = settings_from(dirpath, **options)
        chosen_measures(self._settings.measures)
        optimizers = unwrapped_optimizers(optimizer)
        self._loop = PlainLoop(model, optimizers, total_steps, loss_scale)
        self._run_dir = default_directory() if dirpath is None else Path(dirpath)
        self._handles: list[RemovableHandle] = []
        self._stepped: set[int] = set()
        """Optimizers that have stepped since the batch began."""
        self._batch_is_open = self._started = False
        self._faults = Faults(self._settings.strict)
        self._loss: Tensor | float | None = None
        self._fit: FitRecorder | None = None
        self._closed = False
        self._handled = sys.exc_info()[1]
        """The exception being handled when the recorder was made, if any: it does not end this training."""
        self._recorded = 0
        """Number of recorded training steps in the run, set when it is closed."""

    @property
    def _count(self) -> int:
        return self._recorded if self._fit is None else self._fit.run_output.steps

    def __repr__(self) -> str:
        word = "closed" if self._closed else "recording" if self._fit is not None else "not started"
        what = repr(str(self._run_dir))
        if self._count:
            what = f"{counted(self._count, 'recording')} in {what}"
        return f"<rnndiag.Recorder of {type(self._loop.model).__name__}, {word}: {what}>"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the verdict and the headline numbers of the run, once there is one."""
        return run_html(self._run_dir, repr(self))

    @property
    def run_dir(self) -> Path:
        """The directory of the run."""
        return self._run_dir

    def __enter__(self) -> Recorder:
        self._refuse_if_closed()
        self._guarded(self._start)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(FINISHED if error is None else reason_of(error))

    def step(self, batch: Any = None) -> RecordedStep:
        """A context for one pass through the body of the loop: forward passes and their backward passes.

        It decides whether the pass is watched. Optimizer steps may be inside or after it, or come after several
        of them where gradients accumulate.

        Args:
            batch: The batch, which `labels` and `preflight` read.

        Returns:
            A context manager that gives the `RecordedStep`.
        """
        self._refuse_if_closed()
        self._guarded(self._start)
        return RecordedStep(self, batch)

    def end_epoch(self) -> None:
        """Mark the end of an epoch, by which clipping is summed up. Without calls, the whole training is one epoch."""
        self._guarded(self._handle, "epoch_ended")
        self._loop.end_epoch()

    def add(self, *measurements: Measurement) -> None:
        """Store measurements of your own with the last recording.

        Args:
            *measurements: Each of a registered quantity, made by `rnndiag.Measurement.of`.
        """
        if self._fit is None:
            raise BadArgument(
                "Measurements were added while nothing was being recorded.",
                "Add them inside of `with Recorder(...)`.",
            )
        self._fit.finished.added += measurements

    def close(self, reason: str | None = None) -> None:
        """Store what remains, close the run and, if training finished, print the results.

        Args:
            reason: How the training ended, as stored in the run. None: `finished`, or in a `finally` or an `except`
                the exception that ended it.
        """
        if reason is None:
            # In a `finally` the exception that ended training is the one being handled.
            error = sys.exc_info()[1]
            reason = FINISHED if error is None or error is self._handled else reason_of(error)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._guarded(self._end_batch)
        self._closed = True
        self._guarded(self._conclude, reason)
        if self._fit is not None:
            self._guarded(self._fit.release)
            self._fit = None

    def _guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action`; an exception of the recorder is kept as a fault and does not reach the training loop."""
        try:
            action(*arguments)
        except Exception as error:
            if self._settings.strict:
                raise
            self._faults.add("the recorder", error)

    # -- moments ---------------------------------------------------------------------------------------------------

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise BadArgument(
                "This recorder is closed.", "Make a new rnndiag.Recorder for another training."
            )

    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        faults = self._faults
        place = RunPlace(self._run_dir)
        with faults.guard("choosing the run directory", "Give another dirpath."):
            place = chosen_directory(self._run_dir)
        place = self._loop.broadcast(place)
        if place.message and self._loop.rank == 0:
            warn(place.message)
        self._run_dir = place.path
        with faults.guard("the start of the recorder", "This training is not recorded."):
            self._fit = FitRecorder(self._settings, self._loop, place, faults)
        for optimizer in self._loop.optimizers if self._loop.shows_steps else ():
            self._handles += [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            ]

    def _conclude(self, reason: str) -> None:
        fit = self._fit
        if fit is None:
            return
        if reason == FINISHED:
            fit.handle("finish")
            fit.handle("conclude")
        self._recorded = fit.run_output.steps
        fit.close(reason)

    def _begin_batch(self, batch: Any) -> None:
        self._end_batch()
        self._loop.begin_batch()
        self._stepped.clear()
        self._loss, self._batch_is_open = None, True
        self._handle("batch_started", batch)

    def _note_loss(self, loss: Tensor) -> RemovableHandle | None:
        """Store the loss, and observe the factor that its backward pass multiplies it by."""
        found: list[RemovableHandle] = []

        def hook() -> None:
            self._loss = loss.detach()
            if loss.requires_grad and loss.numel() == 1:
                found.append(loss.register_hook(partial(self._guarded, note)))

        def note(gradient: Tensor) -> None:
            self._loop.factor_of_loss = gradient.detach()

        self._guarded(hook)
        return found[0] if found else None

    def _leave_batch(self, failed: bool) -> None:
        self._loop.inside = False
        if failed:
            self._batch_is_open = False
            self._handle("batch_dropped")
            return
        if not self._loop.shows_steps:
            self._handle("before_optimizer_step", self._loop.optimizers[0])
            self._loop.count_step()
        # an optimizer that is not shown steps later: the batch is over when the next one begins
        if self._stepped:
            self._end_batch()

    def _before_step(self, optimizer: Any, args: Any, options: Any) -> None:
        self._guarded(self._handle, "before_optimizer_step", optimizer)

    def _after_step(self, optimizer: Any, args: Any, options: Any) -> None:
        self._guarded(self._step_made, optimizer)

    def _step_made(self, optimizer: Any) -> None:
        self._loop.count_step()
        self._stepped.add(id(optimizer))
        if not self._loop.inside and len(self._stepped) == len(self._loop.optimizers):
            self._end_batch()

    def _end_batch(self) -> None:
        if self._batch_is_open:
            self._batch_is_open = False
            self._handle("batch_ended", self._loss)

    def _handle(self, moment: str, *facts: Any) -> None:
        if self._fit is not None:
            self._fit.handle(moment, *facts)


class RecordedStep:
    """The result of `recorder.step()`: runs the backward pass, and knows whether the step is recorded."""

    def __init__(self, recorder: Recorder, batch: Any) -> None:
        self._recorder, self._batch = recorder, batch
        self._ran_backward = False

    def __repr__(self) -> str:
        word = "recorded" if self.recorded else "not recorded"
        return f"<step {self._recorder._loop.step} of {self._recorder!r}, {word}>"

    @property
    def recorded(self) -> bool:
        """Whether this step is recorded."""
        fit = self._recorder._fit
        return fit is not None and fit.is_recording

    @property
    def loss(self) -> Tensor | float | None:
        """The loss of this step, for the history of the run; set by `backward`, or by the user."""
        return self._recorder._loss

    @loss.setter
    def loss(self, value: Tensor | float | None) -> None:
        self._recorder._loss = value.detach() if isinstance(value, Tensor) else value

    def backward(
        self, loss: Tensor, backward: Callable[..., Any] | None = None, **options: Any
    ) -> Any:
        """Run the backward pass of a loss, as `loss.backward()` does, and record it.

        Args:
            loss: The loss of the batch.
            backward: What runs the backward pass instead, such as `fabric.backward` or `accelerator.backward`, or
                `lambda loss: scaler.scale(loss).backward()`. By what it scales the loss is seen and divided out.
            **options: Passed on to it.

        Returns:
            What it returned.
        """
        handle = self._recorder._note_loss(loss)
        try:
            returned = loss.backward(**options) if backward is None else backward(loss, **options)
        finally:
            if handle is not None:
                handle.remove()
        self._ran_backward = True
        self._recorder._guarded(self._recorder._handle, "after_backward")
        return returned

    def __enter__(self) -> RecordedStep:
        self._recorder._guarded(self._recorder._begin_batch, self._batch)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        recorder = self._recorder
        if kind is None and not self._ran_backward and not recorder._stepped:
            recorder._guarded(recorder._handle, "after_backward")
        recorder._guarded(recorder._leave_batch, kind is not None)
