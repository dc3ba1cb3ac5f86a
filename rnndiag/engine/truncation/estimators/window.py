"""A sliding window: every loss reaches the last τ states, its own included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.estimators.chunk import Chunk, pass_cost
from rnndiag.engine.truncation.estimators.estimator import Estimate, Estimator, RecordedStep, Task
from rnndiag.errors import require_whole


@dataclass(frozen=True)
class Window:
    """A sliding window of τ states: keeps the pairs (loss at u, state at s) with u - s < τ."""

    tau: int

    unbiased = False
    drawn = False

    def __post_init__(self) -> None:
        require_whole("tau", self.tau, "A window holds a whole number of states, 1 or more.")

    @classmethod
    def beyond(cls, steps: int) -> Window:
        """The window that keeps `steps` steps besides the immediate one.

        This is how `bptt_truncate` of well-known listings, and sums over i from t - τ to t, count: steps + 1 states.
        """
        return cls(steps + 1)

    @property
    def label(self) -> str:
        """Text for tables."""
        return f"window {self.tau}"

    @property
    def back(self) -> int:
        """Number of states that a loss reaches."""
        return self.tau

    def lag_factors(self, T: int, draw: object = None) -> Tensor:
        """(τ,): ones, since every lag within the window is kept unchanged."""
        return torch.ones(min(self.tau, T), dtype=torch.float64)

    @staticmethod
    def recorded(step: RecordedStep) -> list[Estimator]:
        """The estimators of this kind that the callback scores."""
        return [Window(step.short), Window(step.long)] if step.can_be_cut else []

    def outcomes(self, task: Task) -> Iterator[Estimate]:
        """The single outcome. A window of T or more is full BPTT at the same cost."""
        if self.tau >= task.T:
            yield Estimate(1.0, task.full, 1.0, 1.0)
            return
        (found,) = Chunk(1, self.tau).outcomes(task)
        cost = pass_cost(task.losses, 1, self.tau)
        yield Estimate(1.0, found.gradient, cost, found.memory)
