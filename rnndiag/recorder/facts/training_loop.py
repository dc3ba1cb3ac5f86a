"""The interface of a training loop for the recorder, for a Lightning Trainer or a hand-written loop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rnndiag.recorder.facts.history import Scalar, StepFacts, number
from rnndiag.store.measurement import Measurement


@dataclass(frozen=True)
class ClipSetting:
    """How the loop clips gradients, as far as known: by norm, or by entry if `by_value`."""

    threshold: float | None = None
    by_value: bool = False


NO_CLIP = ClipSetting()


@dataclass(frozen=True)
class Scaling:
    """Factor on the loss before its backward pass: AMP's loss scale over the number of accumulated batches."""

    loss_scale: float = 1.0
    accumulate: float = 1

    @property
    def factor(self) -> float:
        """Recorded gradients are divided by this."""
        return self.loss_scale / self.accumulate

    def as_json(self) -> dict[str, float]:
        """The factors, for the notes of a recording."""
        return {"loss_scale": self.loss_scale, "accumulate": self.accumulate}


class TrainingLoop(ABC):
    """One fit on one rank, as its recorder sees it.

    A batch is one pass through the body of the loop; an optimizer may step after several batches (accumulated
    gradients) or several times within one.
    """

    model: Any
    """The module whose recurrent layers are watched."""
    rank: int = 0
    world_size: int = 1
    manual: bool = False
    """Whether the program itself makes the optimizer steps, so that only the optimizer shows when."""
    clips_by_itself: bool = False
    """Whether the program may change the gradients between `before_optimizer_step` and the step."""

    @property
    @abstractmethod
    def step(self) -> int:
        """Optimizer steps made so far."""

    @property
    @abstractmethod
    def batches(self) -> int:
        """Batches begun before the running one."""

    @property
    @abstractmethod
    def epoch(self) -> int:
        """The running epoch, from 0."""

    @property
    @abstractmethod
    def total_batches(self) -> int | None:
        """Batches of the whole fit; None where its end is not known beforehand."""

    @property
    @abstractmethod
    def optimizers(self) -> Sequence[Any]:
        """All optimizers of the fit."""

    @property
    def steps_within_batch(self) -> bool:
        """Whether forward passes for another optimizer step may follow within the current batch."""
        return self.manual

    @property
    def complete_at_batch_end(self) -> bool:
        """Whether a recording is stored at the end of its batch even if no optimizer step was seen."""
        return self.manual

    @property
    def clip(self) -> ClipSetting:
        """The loop's own clipping; clipping by the program is detected by `own_clipping`."""
        return NO_CLIP

    @property
    def scaling(self) -> Scaling:
        """The scaling in the current backward pass, or in the last one."""
        return Scaling()

    @property
    def precision(self) -> torch.dtype | None:
        """The reduced precision that the model runs in; None: that of its tensors."""
        return None

    @property
    def may_end_early(self) -> bool:
        """Whether something may end the fit before its last batch."""
        return False

    @property
    def monitored_metric(self) -> float | None:
        """The last value of the monitored metric; None: there is none."""
        return None

    @property
    def batch_size(self) -> int | None:
        """Samples per batch, if the loader reports it and all loaders agree."""
        return None

    @property
    def loggers(self) -> Sequence[Any]:
        """Loggers that may take the report."""
        return ()

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, on every rank."""
        return value

    def log(self, scalars: Mapping[str, float]) -> None:
        """Pass scalars of a recording to the loop's own loggers, if any."""
        del scalars

    def monitor(self, scalars: Mapping[str, float], shown: str) -> None:
        """Publish scalars as metrics that may be monitored; `shown` names the one for the progress bar."""
        del scalars, shown

    def as_json(self) -> dict[str, Any]:
        """Settings of the loop that influence gradients and steps, for the provenance."""
        return {}


def loss_of(outputs: Any) -> Scalar | None:
    """The loss in the result of a training step, left on its device; None if there is none."""
    if type(outputs) is dict or isinstance(outputs, Mapping):
        outputs = outputs.get("loss")
    if isinstance(outputs, float):
        return outputs
    if not isinstance(outputs, Tensor) or outputs.numel() != 1:
        return None
    # reading a number of a GPU would make the host wait for the GPU at every step
    return outputs.detach() if outputs.is_cuda else outputs.item()


def training_measurements(
    facts: StepFacts | None, loss: Scalar | None, overhead_seconds: float, overhead_share: float
) -> list[Measurement]:
    """The whole model's scalars at a recorded step. An unknown loss is left out: a stored NaN means a loss of NaN."""
    values = {"overhead_seconds": overhead_seconds, "overhead_share": overhead_share}
    if loss is not None:
        values["loss"] = number(loss)
    if facts is not None:
        values["total_gradient_norm"] = number(facts.norm)
        values["learning_rate"] = facts.learning_rate
        values["clip_threshold"] = math.nan if facts.threshold is None else facts.threshold
    return [Measurement.of(name, np.asarray(value)) for name, value in values.items()]
