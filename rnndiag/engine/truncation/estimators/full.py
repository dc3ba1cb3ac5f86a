"""Full backpropagation through time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from rnndiag.engine.truncation.estimators.estimator import Estimate, Estimator, RecordedStep, Task


@dataclass(frozen=True)
class Full:
    """Full backpropagation through time: the gradient itself."""

    unbiased = True
    drawn = False
    label = "full"

    @staticmethod
    def recorded(step: RecordedStep) -> list[Estimator]:
        """The estimators of this kind that the callback scores."""
        return [Full()]

    def outcomes(self, task: Task) -> Iterator[Estimate]:
        """The single outcome."""
        yield Estimate(1.0, task.full, 1.0, 1.0)

    def state_factors(self, T: int, draw: object = None) -> Tensor | None:
        """None: nothing is cut."""
        return None
