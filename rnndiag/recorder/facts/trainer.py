"""What the Trainer knows of a step, read in one place: its number, loss, clipping, loss scale and precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rnndiag.recorder.facts.history import Scalar, StepFacts, number
from rnndiag.store.measurement import Measurement


def step_of(trainer: Any, module: Any) -> int:
    """Optimizer steps made so far. A manual loop that steps past the Trainer is counted in batches."""
    step = int(trainer.global_step)
    if step == 0 and not module.automatic_optimization:
        return int(trainer.fit_loop.total_batch_idx)
    return step


def batches_so_far(trainer: Any) -> int:
    """Training batches begun, over all epochs."""
    return int(trainer.fit_loop.total_batch_idx)


def total_batches(trainer: Any, module: Any) -> int | None:
    """Training batches of the whole fit; None where its end is not known beforehand."""
    if any(type(callback).__name__ == "Timer" for callback in trainer.callbacks):
        return None
    limits = []
    per_epoch = float(trainer.num_training_batches)
    if math.isfinite(per_epoch) and trainer.max_epochs not in (None, -1):
        limits.append(per_epoch * trainer.max_epochs)
    if trainer.max_steps not in (None, -1) and module.automatic_optimization:
        limits.append(trainer.max_steps * accumulation_of(trainer, module))
    return int(min(limits)) if limits and min(limits) > 0 else None


def may_end_early(trainer: Any) -> bool:
    """Whether a callback may end the fit before its last batch."""
    return any("EarlyStopping" in _names(type(callback)) for callback in trainer.callbacks)


def _names(kind: type) -> list[str]:
    return [base.__name__ for base in kind.__mro__]


def monitored_metric(trainer: Any) -> Scalar | None:
    """The last value of the metric that a callback monitors; None: there is none."""
    for callback in trainer.callbacks:
        name = getattr(callback, "monitor", None)
        if isinstance(name, str) and name in trainer.callback_metrics:
            return float(trainer.callback_metrics[name])
    return None


def loss_of(outputs: Any) -> Scalar | None:
    """The loss that a training step returned, on a GPU left there; None where it returned none."""
    if type(outputs) is dict or isinstance(outputs, Mapping):
        outputs = outputs.get("loss")
    if not isinstance(outputs, Tensor) or outputs.numel() != 1:
        return None
    return outputs.detach() if outputs.is_cuda else outputs.item()


@dataclass(frozen=True)
class ClipSetting:
    """How the Trainer clips gradients."""

    threshold: float | None = None
    by_value: bool = False


_NO_CLIP = ClipSetting()


def clip_of(trainer: Any) -> ClipSetting:
    """The Trainer's clipping; a program's own is not known to it (see `own_clipping`)."""
    value = trainer.gradient_clip_val
    if not value:
        return _NO_CLIP
    algorithm = getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm)
    return ClipSetting(float(value), by_value=algorithm == "value")


def clips_by_itself(module: Any) -> bool:
    """Whether the module brings a `configure_gradient_clipping` of its own."""
    hook = getattr(type(module), "configure_gradient_clipping", None)
    owner = str(getattr(hook, "__module__", ""))
    return hook is not None and not owner.startswith(("lightning.", "pytorch_lightning."))


@dataclass(frozen=True)
class Scaling:
    """By what the loss was multiplied before its backward pass: AMP's loss scale over the accumulated batches."""

    loss_scale: float = 1.0
    accumulate: int = 1

    @property
    def factor(self) -> float:
        """What is divided out of every recorded gradient."""
        return self.loss_scale / self.accumulate

    def as_json(self) -> dict[str, float]:
        """For the recording's notes."""
        return {"loss_scale": self.loss_scale, "accumulate": self.accumulate}


def scaling_of(trainer: Any, module: Any) -> Scaling:
    """The scaling of the backward passes that are running now."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return Scaling(
        float(scaler.get_scale()) if scaler is not None else 1.0, accumulation_of(trainer, module)
    )


def accumulation_of(trainer: Any, module: Any) -> int:
    """By how much the Trainer divides the loss before each backward pass."""
    return int(trainer.accumulate_grad_batches) if module.automatic_optimization else 1


_PRECISIONS = {
    "bf16": torch.bfloat16,
    "16": torch.float16,
}


def precision_of(trainer: Any) -> torch.dtype | None:
    """The reduced precision that the model runs in; None: that of its tensors."""
    return _PRECISIONS.get(str(trainer.precision).partition("-")[0])


def training_measurements(
    facts: StepFacts | None, loss: Scalar | None, overhead_seconds: float, overhead_share: float
) -> list[Measurement]:
    """The whole model's scalars at a recorded step."""
    values = {
        "loss": number(loss),
        "overhead_seconds": overhead_seconds,
        "overhead_share": overhead_share,
    }
    if facts is not None:
        values["total_gradient_norm"] = number(facts.norm)
        values["learning_rate"] = facts.learning_rate
        values["clip_threshold"] = math.nan if facts.threshold is None else facts.threshold
    return [Measurement.of(name, np.asarray(value)) for name, value in values.items()]
