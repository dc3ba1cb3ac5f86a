"""A fit run by a Lightning Trainer: its step, clipping, loss scale and precision, all read here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import torch

from rnndiag.recorder.facts.training_loop import NO_CLIP, ClipSetting, Scaling, TrainingLoop

_PRECISIONS = {"bf16": torch.bfloat16, "16": torch.float16}


class LightningLoop(TrainingLoop):
    """Reads the Trainer on every access, as its counters and settings change during a fit."""

    def __init__(self, trainer: Any, module: Any) -> None:
        self.trainer, self.model = trainer, module
        self._shown = ""
        self.rank, self.world_size = int(trainer.global_rank), int(trainer.world_size)
        self.manual = not module.automatic_optimization
        self.clips_by_itself = not self.manual and _clips_by_itself(module)

    @property
    def step(self) -> int:
        """Optimizer steps so far. In a manual loop that steps without the Trainer, batches are counted."""
        step = int(self.trainer.global_step)
        return self.batches if step == 0 and self.manual else step

    @property
    def batches(self) -> int:
        """Training batches begun before the current one, over all epochs."""
        return int(self.trainer.fit_loop.total_batch_idx)

    @property
    def epoch(self) -> int:
        """The Trainer's current epoch."""
        return int(self.trainer.current_epoch)

    @property
    def total_batches(self) -> int | None:
        """Training batches of the whole fit; None if a Timer or nothing ends it."""
        trainer = self.trainer
        if any(type(callback).__name__ == "Timer" for callback in trainer.callbacks):
            return None
        limits = []
        per_epoch = float(trainer.num_training_batches)
        if math.isfinite(per_epoch) and trainer.max_epochs not in (None, -1):
            limits.append(per_epoch * trainer.max_epochs)
        if trainer.max_steps not in (None, -1) and not self.manual:
            limits.append(trainer.max_steps * self._accumulate)
        return int(min(limits)) if limits and min(limits) > 0 else None

    @property
    def optimizers(self) -> Sequence[Any]:
        """The Trainer's optimizers."""
        found: Sequence[Any] = self.trainer.optimizers
        return found

    @property
    def clip(self) -> ClipSetting:
        """From `gradient_clip_val` of the Trainer."""
        trainer = self.trainer
        value = trainer.gradient_clip_val
        if not value:
            return NO_CLIP
        algorithm = getattr(
            trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm
        )
        return ClipSetting(float(value), by_value=algorithm == "value")

    @property
    def scaling(self) -> Scaling:
        """The loss scale of the precision plugin; 1 if its scaler does not report one."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        get_scale = getattr(scaler, "get_scale", None)
        return Scaling(1.0 if get_scale is None else float(get_scale()), self._accumulate)

    @property
    def _accumulate(self) -> int:
        """The factor by which the Trainer divides the loss before each backward pass."""
        return 1 if self.manual else int(self.trainer.accumulate_grad_batches)

    @property
    def precision(self) -> torch.dtype | None:
        """bfloat16 for "bf16-mixed", float16 for "16-mixed"."""
        return _PRECISIONS.get(str(self.trainer.precision).partition("-")[0])

    @property
    def may_end_early(self) -> bool:
        """Whether EarlyStopping, or a subclass of it, is among the callbacks."""
        kinds = [base for callback in self.trainer.callbacks for base in type(callback).__mro__]
        return any(kind.__name__ == "EarlyStopping" for kind in kinds)

    @property
    def monitored_metric(self) -> float | None:
        """The last value of the monitored metric; None before it was logged."""
        value = self.trainer.callback_metrics.get(self._monitored.get("monitor", ""))
        return None if value is None else float(value)

    @property
    def _monitored(self) -> dict[str, str]:
        """Name and mode (min, max) of the first metric that a callback monitors."""
        for callback in self.trainer.callbacks:
            name = getattr(callback, "monitor", None)
            if isinstance(name, str):
                return {"monitor": name, "monitor_mode": str(getattr(callback, "mode", ""))}
        return {}

    @property
    def batch_size(self) -> int | None:
        """Batch size of the training loader, or of all loaders if they agree."""
        loader = getattr(self.trainer, "train_dataloader", None)
        loaders = loader if isinstance(loader, (list, tuple)) else [loader]
        sizes = {_batch_size(one) for one in loaders}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def loggers(self) -> Sequence[Any]:
        """The Trainer's loggers."""
        found: Sequence[Any] = self.trainer.loggers
        return found

    def broadcast(self, value: Any) -> Any:
        """Broadcast through the Trainer's strategy."""
        return self.trainer.strategy.broadcast(value)

    def log(self, scalars: Mapping[str, float]) -> None:
        """Log to every logger, at the step used for the module's own scalars."""
        step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in self.loggers:
            logger.log_metrics(scalars, step=step)

    def monitor(self, scalars: Mapping[str, float], shown: str) -> None:
        """Log through the module: `trainer.callback_metrics`, EarlyStopping and the progress bar see them.

        At the end of an epoch each is the mean over the epoch's recordings. Allowed at the end of a batch only.
        """
        # Lightning takes a name with the same options only, so the bar keeps the first scalar that it showed.
        self._shown = self._shown or shown
        for name, value in scalars.items():
            # the loggers have them at the step of the recording already (`log`)
            self.model.log(
                name,
                value,
                on_step=True,
                on_epoch=True,
                logger=False,
                prog_bar=name == self._shown,
                batch_size=1,
            )

    def as_json(self) -> dict[str, Any]:
        """The Trainer's settings that influence gradients and steps."""
        trainer = self.trainer
        clips = bool(trainer.gradient_clip_val)
        found = {
            "precision": str(trainer.precision),
            "accumulate": trainer.accumulate_grad_batches,
            "clip": trainer.gradient_clip_val,
            "clip_algorithm": str(trainer.gradient_clip_algorithm) if clips else None,
            "max_steps": trainer.max_steps,
            "max_epochs": trainer.max_epochs,
            "devices": trainer.num_devices,
            "world_size": trainer.world_size,
            "strategy": type(trainer.strategy).__name__,
            **self._monitored,
        }
        truncation = getattr(self.model, "tbptt_label", None)
        return found if truncation is None else {**found, "truncation": truncation}


def _batch_size(loader: Any) -> int | None:
    size = getattr(loader, "batch_size", None)
    if size is None:
        size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if not isinstance(size, int):
        return None
    samples = getattr(loader, "dataset", None)
    return min(size, len(samples)) if isinstance(samples, Sized) else size


def _clips_by_itself(module: Any) -> bool:
    """Whether the module overrides `configure_gradient_clipping`."""
    hook = getattr(type(module), "configure_gradient_clipping", None)
    owner = str(getattr(hook, "__module__", ""))
    return hook is not None and not owner.startswith(("lightning.", "pytorch_lightning."))
