"""GradientDiagnostics, the Lightning callback. It holds the user's settings; `FitRecorder` does the work of a fit."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnndiag.errors import BadArgument
from rnndiag.recorder.facts.lightning_loop import LightningLoop
from rnndiag.recorder.faults import Faults, warn
from rnndiag.recorder.fit import FitRecorder
from rnndiag.recorder.measures import chosen_measures
from rnndiag.recorder.namespaces import adopt, callback_base
from rnndiag.recorder.need.at_end import need_of_fit
from rnndiag.recorder.output.directory import RunPlace, chosen_directory, default_directory
from rnndiag.recorder.settings import LogChoice, settings_from
from rnndiag.report.notebook import run_html
from rnndiag.stats.need import MemoryNeed, need_measurements
from rnndiag.store.ending import reason_of
from rnndiag.store.limits import BUDGET_BYTES
from rnndiag.store.text import counted

if TYPE_CHECKING:
    from lightning.pytorch import Callback as _OfLightning
    from pytorch_lightning import Callback as _OfPyTorchLightning
    from typing_extensions import Self

    from rnndiag.store.measurement import Measurement

    class _Base(_OfLightning, _OfPyTorchLightning):  # type: ignore[misc]  # two trainers, in every hook
        """Callback of `lightning.pytorch`, of `pytorch_lightning`, or both: a Trainer of either takes it."""
else:
    _Base = callback_base()

_LIVE: weakref.WeakSet[GradientDiagnostics] = weakref.WeakSet()


class _Adopting(_Base):
    """Separate class, because LightningCLI reads a class's arguments from its own `__new__` before its `__init__`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """An instance that is a Callback of every Lightning package imported so far."""
        adopt(GradientDiagnostics)
        return super().__new__(cls)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class for isinstance() if the type alone does not match: adopts packages imported since.

        Python uses the answer only if it differs from the type, so the first answer is a subclass made for this
        purpose.
        """
        mine = type(self)
        return type(mine.__name__, (mine,), {}) if adopt(GradientDiagnostics) else mine


class GradientDiagnostics(_Adopting):
    """Records, while a Lightning module trains, how far back the gradients of its recurrent layers reach.

    It does not influence training: with and without the callback the weights are bit-identical. Its own errors are
    reported once and stored in the run, and training continues.

    Args:
        dirpath: Where the run is written. None: `runs/<date and time>`. If a run is there already, a fresh fit writes
            to `<dirpath>-2` and says so. See `run_dir`.
        every_n_steps: Number of optimizer steps between recordings. None: as `budget` allows.
        budget: Largest share of training time that the diagnostics may take. If the length of the fit is known, at
            least 8 recordings are made even beyond the budget, which the screen at the end then reports. Every step
            costs 0.1 to 0.2 ms on a CPU (mostly the norm of all gradients), which counts first.
        schedule: A callable from the step to whether it is recorded, in place of the two above.
        measures: Groups to measure: contributions, lags, jacobians, lyapunov, gates, estimators, need_screen,
            swing. None: all, the costlier ones on fewer recordings.
        samples: Number of sequences of the batch that the costly measures use. None: all.
        steps: Names of modules that do one step of a recurrence in Python, where neither a registered cell nor the
            name of their second argument (h, state, hidden, ...) says so.
        seam: Number of chunks kept before a recorded one (at most 256 MB) where a detached state is carried from
            chunk to chunk (truncated BPTT). The gradient is followed back through them, which measures what the cut
            leaves out. 0: no chunk is kept.
        black_box: Also record steps outside of the schedule whose loss or gradient is not finite, or whose gradient
            norm jumps. Light hooks then keep references to the tensors of every step, which takes some tens of
            microseconds per layer; layers that are called step by step are not kept. On a GPU each step's gradient
            norm is waited for.
        jump: The factor over the running median of the gradient norm that counts as a jump.
        log: Scalars for the trainer's logger: "worst" (six, of the layer with the shortest reach), "all", "none".
        labels: A callable that takes the batch and returns names of the time steps (or tokens) of its first sequence,
            or a dict with the names under "time" and names of the sequences under "sequence".
        time_unit: What one time step is, such as ("h", 1), so that sentences give hours.
        stride: Number of time steps that one step of the recurrence spans, where it reads several at once.
        screen: Print one screen of text at the end of the fit.
        report: Write report.html into the run directory at the end of the fit.
        preflight: Check the first recorded step for structural faults (a state that is not passed on, time and batch
            exchanged, a loss that reads padding) and store the findings for `rnndiag check`.
        strict: Raise the recorder's own errors instead of reporting them (for tests and CI).
        chance: The loss of a constant answer, if known: a model at that loss ignores its input.
        needs: Number of steps back that the task needs, or a duration such as "6 h" if `time_unit` is given. A
            sequence, window or memory shorter than that is then reported as a cause.
        need: At the end of the fit, test on the validation batches whether the loss asks for inputs further back
            than the gradient reaches (see `rnndiag.memory_need`). It costs some hundred plain steps, outside of the
            budget, and is stored in the run.
        max_bytes: Size limit of the run on disk, all ranks together. Recordings become rarer as it fills up; when it is
            reached, recording stops, and `rnndiag check` says that the end of the training was not recorded.
        max_memory: Bytes that the measures of one recording may take beyond what its backward pass has freed. Lag
            sweeps and scores of estimators then use fewer sequences; contributions, which cannot, are refused, and
            the recording is not proved. None: a quarter of what autograd keeps for the recurrent layers, at least 64
            MB, and contributions are never refused.
        independent: Whether the loss is a sum over the sequences of the batch, as noise and systematic bias assume.
            None: tested by the second derivative of the loss between two sequences.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        every_n_steps: int | None = None,
        budget: float = 0.03,
        schedule: Callable[[int], bool] | None = None,
        measures: Sequence[str] | None = None,
        samples: int | None = 8,
        steps: Sequence[str] = (),
        seam: int = 2,
        black_box: bool = True,
        jump: float = 20.0,
        log: LogChoice = "worst",
        labels: Callable[[Any], Any] | None = None,
        time_unit: tuple[str, float] | None = None,
        stride: int = 1,
        screen: bool = True,
        report: bool = True,
        preflight: bool = True,
        strict: bool = False,
        chance: float | None = None,
        needs: int | str | None = None,
        need: bool = False,
        max_bytes: float = BUDGET_BYTES,
        max_memory: float | None = None,
        independent: bool | None = None,
    ) -> None:
        super().__init__()
        self._settings = settings_from(
            dirpath,
            measures,
            time_unit,
            steps,
            every_n_steps=every_n_steps,
            budget=budget,
            schedule=schedule,
            samples=samples,
            seam=seam,
            black_box=black_box,
            jump=jump,
            log=log,
            labels=labels,
            stride=stride,
            screen=screen,
            report=report,
            preflight=preflight,
            strict=strict,
            chance=chance,
            needs=needs,
            need=need,
            max_bytes=max_bytes,
            max_memory=max_memory,
            independent=independent,
        )
        chosen_measures(self._settings.measures)
        self._run_dir = default_directory() if dirpath is None else Path(dirpath)
        self._ordinal = _first_free_ordinal(self._settings.dirpath)
        self._key = f"rnndiag.GradientDiagnostics({self._settings.dirpath!r})"
        self._resumed: dict[str, Any] | None = None
        self._wrote = False
        self._fit: FitRecorder | None = None
        self.need: MemoryNeed | None = None
        """The result of `need=True` at the end of the last fit."""
        _LIVE.add(self)

    def __repr__(self) -> str:
        if self._fit is not None:
            state = f"recording, {counted(self._fit.run_output.steps, 'recording')}"
        else:
            state = "recorded" if self._wrote else "nothing recorded yet"
        return f"<rnndiag.GradientDiagnostics in {str(self._run_dir)!r}: {state}>"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the verdict and the headline numbers of the run, once there is one."""
        return run_html(self._run_dir, repr(self))

    @property
    def run_dir(self) -> Path:
        """The directory of the run: fixed at construction, the same in copies of the callback."""
        return self._run_dir

    def add(self, *measurements: Measurement) -> None:
        """Store measurements of your own with the last recording of the fit that is going on.

        Each is of a registered quantity: `rnndiag.Measurement.of("state_map", values, layer=..., coordinates=...)`.
        """
        if self._fit is None:
            raise BadArgument(
                "Measurements were added while no fit was going on.",
                "Add them in a hook of training, on_train_end of an earlier callback at the latest.",
            )
        self._fit.finished.added += measurements

    @property
    def state_key(self) -> str:
        """Distinct for every instance, and the same when the program is restarted."""
        return f"{self._key}#{self._ordinal}"

    def state_dict(self) -> dict[str, Any]:
        """Plain values only, so that checkpoints load with weights_only."""
        return {
            "run_dir": str(self._run_dir),
            "dirpath": self._settings.dirpath or "",
            "wrote": self._wrote,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint: recording continues in the directory of its run."""
        self._resumed = dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Plain values: no trainer, module or file, and nothing that the Trainer sets on the callback (`log`)."""
        adopt(GradientDiagnostics)
        own = {name: value for name, value in self.__dict__.items() if name.startswith("_")}
        return {**own, "_fit": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        adopt(GradientDiagnostics)
        self.__dict__.update(state)
        _LIVE.add(self)

    # -- a fit -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start of a fit, after the sanity check and the loading of a checkpoint."""
        self._close("superseded by another fit")
        resumed, self._resumed = self._resumed, None
        faults = Faults(self._settings.strict)
        place = RunPlace(self._run_dir)
        with faults.guard("choosing the run directory", "Give another dirpath."):
            step = int(trainer.global_step)
            place = chosen_directory(
                self._run_dir, step, resumed, self._settings.dirpath, self._wrote
            )
        place = trainer.strategy.broadcast(place)
        if place.message and trainer.global_rank == 0:
            warn(place.message)
        self._run_dir = place.path
        with faults.guard("the start of the recorder", "This fit is not recorded."):
            self._fit = FitRecorder(
                self._settings, LightningLoop(trainer, pl_module), place, faults
            )

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decide whether this step is recorded, and if so install the hooks."""
        if self._fit is None or not self._fit.skip_batch():
            self._pass("batch_started", batch)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """After a backward pass run by the Trainer, before anything changes weights or gradients."""
        if self._fit is not None and not self._fit.unwatched:
            self._pass("after_backward")

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Read the gradients, which are unscaled and not yet clipped."""
        if self._fit is not None and not self._fit.unwatched:
            self._pass("before_optimizer_step", optimizer)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End of the step: store its measurements."""
        if self._fit is not None and self._fit.skips_batch:
            self._fit.check_loss_only(outputs, batch)
        else:
            self._pass("batch_ended", outputs)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the clipping summary of the epoch."""
        self._pass("epoch_ended")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop counting time as training."""
        self._pass("paused")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Count time as training again."""
        self._pass("resumed")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """After the last step: measure the need if requested, and close the run."""
        self._measure_need(trainer, pl_module)
        self._pass("finish")

    def _measure_need(self, trainer: Any, pl_module: Any) -> None:
        """Run `memory_need`; its time is not counted against the budget, since the user requested it after training."""
        fit = self._fit
        if fit is None or not self._settings.need or trainer.global_rank != 0:
            return
        window = fit.reader.cut_after
        with fit.faults.guard("measuring the need of memory", "Call rnndiag.memory_need instead."):
            self.need = need_of_fit(trainer, pl_module, window)
            fit.finished.added += need_measurements(self.need)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the results, now that the progress bar is closed."""
        self._pass("conclude")

    def _pass(self, moment: str, *facts: Any) -> None:
        """Call the recorder for one event of the loop; no error of it ends training."""
        if (fit := self._fit) is not None:
            fit.handle(moment, *facts)
            self._wrote = self._wrote or fit.run_output.opened

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the run when the fit ends with an exception, which is not changed."""
        self._close(reason_of(exception))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Remove everything that is attached to the model, whatever happened before."""
        if stage == "fit":
            self._close("stopped")

    def _close(self, reason: str) -> None:
        fit, self._fit = self._fit, None
        if fit is not None:
            with fit.faults.guard("the end of the recorder"):
                try:
                    fit.close(reason)
                finally:
                    fit.release()
            self._wrote = self._wrote or fit.run_output.opened


def _first_free_ordinal(dirpath: str | None) -> int:
    """The smallest number not used by a living instance with the same dirpath, so that state keys differ."""
    taken = {other._ordinal for other in _LIVE if other._settings.dirpath == dirpath}
    return next(number for number in range(len(taken) + 1) if number not in taken)
