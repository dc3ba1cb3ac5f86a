"""A program's own clipping, which the Trainer knows nothing of: seen by the norm before it and the norm after it."""

from __future__ import annotations

from collections.abc import Iterable

from rnndiag.recorder.facts.gradient_norms import gradients_of, total_norm
from rnndiag.recorder.facts.history import Scalar, StepFacts
from rnndiag.recorder.facts.training_loop import TrainingLoop


class OwnClipping:
    """Takes the second norm where a program may clip: in a manual loop, or in its own `configure_gradient_clipping`.

    A manual loop clips between its backward pass and its optimizer step, so the norm after the backward pass is taken
    too. The own hook of an automatic one runs after the gradients are read, so they are read again after the step.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._before: dict[int, Scalar] = {}

    def after_backward(self) -> None:
        """The norms that a manual loop's backward pass left."""
        scale = self._loop.scaling.loss_scale
        for optimizer in self._loop.optimizers:
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
        if not self._loop.clips_by_itself:
            return
        optimizers = {id(optimizer): optimizer for optimizer in self._loop.optimizers}
        for facts in made:
            if facts.optimizer in optimizers:
                facts.stepped = total_norm(gradients_of(optimizers[facts.optimizer]))
