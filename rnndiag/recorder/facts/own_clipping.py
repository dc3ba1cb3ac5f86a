"""Detects clipping by the program itself, unknown to the Trainer, from the norms before and after it."""

from __future__ import annotations

from collections.abc import Iterable

from rnndiag.recorder.facts.gradient_norms import gradients_of, total_norm
from rnndiag.recorder.facts.history import Scalar, StepFacts
from rnndiag.recorder.facts.training_loop import TrainingLoop


class OwnClipping:
    """Measures a second norm where the program may clip: in a manual loop, or in its `configure_gradient_clipping`.

    A manual loop clips between its backward pass and its optimizer step, so the norm after the backward pass is
    measured too. The hook of an automatic loop runs after the gradients were read, so they are read again after the
    step.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._before: dict[int, Scalar] = {}

    def after_backward(self) -> None:
        """Store the norms after a manual loop's backward pass."""
        scale = self._loop.scaling.loss_scale
        for optimizer in self._loop.optimizers:
            norm = total_norm(gradients_of(optimizer))
            if norm is not None:
                self._before[id(optimizer)] = norm / scale

    def before_step(self, facts: StepFacts) -> None:
        """Compare the gradients just read with those after the backward pass: they may have been clipped since."""
        before = self._before.pop(facts.optimizer, None)
        if before is not None:
            facts.stepped, facts.norm = facts.norm, before

    def after_step(self, made: Iterable[StepFacts]) -> None:
        """Store the norms after clipping for the steps of this batch."""
        if not self._loop.clips_by_itself:
            return
        optimizers = {id(optimizer): optimizer for optimizer in self._loop.optimizers}
        for facts in made:
            if facts.optimizer in optimizers:
                facts.stepped = total_norm(gradients_of(optimizers[facts.optimizer]))
