"""Counters of a hand-written training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rnndiag.errors import BadArgument
from rnndiag.recorder.facts.training_loop import Scaling, TrainingLoop

_WRAPPERS = ("_forward_module", "_orig_mod", "module")
"""Attributes in which Fabric, torch.compile and DistributedDataParallel (used by Accelerate) keep the wrapped
module."""


class PlainLoop(TrainingLoop):
    """Counters of a loop, advanced by `rnndiag.Recorder`.

    Args:
        model: The module that is trained, perhaps wrapped.
        optimizers: The torch optimizers. None: the loop shows none, and every batch is one optimizer step.
        total: Batches of the whole training, where that is known.
        loss_scale: Gives the factor of a scaled loss while a backward pass runs.
    """

    manual = True
    complete_at_batch_end = False  # gradients may accumulate until an optimizer steps

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Any] | None,
        total: int | None = None,
        loss_scale: Callable[[], float] | None = None,
    ) -> None:
        self.model = unwrapped_model(model)
        self.shows_steps = optimizers is not None
        self._optimizers = (
            [UnknownOptimizer(self.model)] if optimizers is None else list(optimizers)
        )
        self._total, self._loss_scale = total, loss_scale
        self._steps, self._batches, self._epoch = 0, -1, 0
        self.factor_of_loss: Tensor | None = None
        """d(differentiated value) / d(loss) of the last `step.backward`, observed in its backward pass."""
        self.inside = False
        """Whether the body of a batch is running."""
        if dist.is_available() and dist.is_initialized():
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def begin_batch(self) -> None:
        """The body of the loop is entered."""
        self._batches += 1
        self.factor_of_loss, self.inside = None, True

    def count_step(self) -> None:
        """Count an optimizer step."""
        self._steps += 1

    def end_epoch(self) -> None:
        """Count an epoch."""
        self._epoch += 1

    @property
    def step(self) -> int:
        """Optimizer steps made so far."""
        return self._steps

    @property
    def batches(self) -> int:
        """Index of the running batch, -1 before the first."""
        return self._batches

    @property
    def epoch(self) -> int:
        """Number of calls of `Recorder.end_epoch` so far."""
        return self._epoch

    @property
    def total_batches(self) -> int | None:
        """As given by the program."""
        return self._total

    @property
    def optimizers(self) -> Sequence[Any]:
        """The program's optimizers, or one that holds all parameters."""
        return self._optimizers

    @property
    def steps_within_batch(self) -> bool:
        """True within a batch; between two batches nothing is recorded."""
        return self.inside

    @property
    def scaling(self) -> Scaling:
        """From `loss_scale` if given, else from the gradient that arrived at the loss in `step.backward`."""
        if self._loss_scale is not None:
            factor = float(self._loss_scale())
        else:
            factor = 1.0 if self.factor_of_loss is None else float(self.factor_of_loss)
        # AMP scales up, and its gradients are unscaled before the step; an average over accumulated batches scales
        # down for good. Of who does both at once the norm before clipping is not known.
        return Scaling(loss_scale=factor) if factor > 1.0 else Scaling(accumulate=1.0 / factor)

    def broadcast(self, value: Any) -> Any:
        """Over torch.distributed's default group."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def as_json(self) -> dict[str, Any]:
        """The types of the optimizers."""
        kinds = [type(optimizer).__name__ for optimizer in self._optimizers if self.shows_steps]
        return {"loop": "rnndiag.Recorder", "optimizers": kinds, "world_size": self.world_size}


class UnknownOptimizer:
    """Replaces optimizers that the loop does not pass to the recorder: holds every parameter of the model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One group, including parameters created late."""
        return [{"params": list(self._model.parameters())}]


def unwrapped_model(model: nn.Module) -> nn.Module:
    """The module inside of the wrappers of Fabric, DistributedDataParallel and torch.compile."""
    while True:
        kind = type(model).__name__
        if kind not in ("_FabricModule", "OptimizedModule", "DistributedDataParallel"):
            return model
        inner = next(
            (part for name in _WRAPPERS if (part := _child(model, name)) is not None), None
        )
        if inner is None:
            return model
        model = inner


def _child(model: nn.Module, name: str) -> nn.Module | None:
    child = model._modules.get(name)
    return child if child is not None else None


def unwrapped_optimizers(given: Any) -> list[torch.optim.Optimizer] | None:
    """The torch optimizers inside of what a program calls its optimizer (those of Fabric and Accelerate wrap one).

    Args:
        given: An optimizer, several in a list, or None.

    Raises:
        BadArgument: One of them is no torch optimizer and wraps none.
    """
    if given is None:
        return None
    found = []
    for one in given if isinstance(given, (list, tuple)) else [given]:
        inner = one
        while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
            inner = inner.optimizer
        if not isinstance(inner, torch.optim.Optimizer):
            raise BadArgument(
                f"`optimizer` is a {type(one).__name__}, which is no torch optimizer.",
                "Pass the torch optimizer (or a list of them), or leave it out: each recorder.step() is then one step.",
            )
        found.append(inner)
    if not found:
        raise BadArgument("`optimizer` is an empty list.", "Pass an optimizer, or leave it out.")
    return found
