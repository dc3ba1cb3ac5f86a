"""A program's own clipping, which the Trainer knows nothing of: seen by the norm before it and the norm after it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rnndiag.recorder.facts.gradient_norms import gradients_of, total_norm
from rnndiag.recorder.facts.history import Scalar, StepFacts
from rnndiag.recorder.facts.trainer import clips_by_itself, scaling_of


class OwnClipping:
    """Takes the second norm where a program may clip: in a manual loop, or in its own `configure_gradient_clipping`.

    A manual loop clips between its backward pass and its optimizer step, so the norm after the backward pass is taken
    too. The own hook of an automatic one runs after the gradients are read, so they are read again after the step.
    """

    def __init__(self, trainer: Any, module: Any) -> None:
        self._trainer, self._module = trainer, module
        self.manual = not module.automatic_optimization
        self._after_step = not self.manual and clips_by_itself(module)
        self._before: dict[int, Scalar] = {}

    def after_backward(self) -> None:
        """The norms that a manual loop's backward pass left."""
        scale = scaling_of(self._trainer, self._module).loss_scale
        for optimizer in self._trainer.optimizers:
            norm = total_norm(gradients_of(optimizer))
            if norm is not None:
                self._before[id(optimizer)] = norm / scale

    def before_step(self, facts: StepFacts) -> None:
        """What the gradients were read as now may have been clipped since the backward pass."""
        before = self._before.pop(facts.optimizer, None)
        if before is not None:
            facts.stepped, facts.norm = facts.norm, before

    def after_step(self, made: Iterable[StepFacts]) -> None:
        """The norms that were left for the steps of this batch."""
        if not self._after_step:
            return
        optimizers = {id(optimizer): optimizer for optimizer in self._trainer.optimizers}
        for facts in made:
            if facts.optimizer in optimizers:
                facts.stepped = total_norm(gradients_of(optimizers[facts.optimizer]))
