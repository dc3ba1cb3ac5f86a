"""Chunked truncation: a backward pass every k1 steps through the last k2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.estimators.estimator import Estimate, Estimator, RecordedStep, Task
from rnndiag.engine.truncation.sweep.truncated_adjoints import segments
from rnndiag.errors import BadArgument, require_whole


def pass_cost(losses: Tensor, k1: int, k2: int) -> float:
    """Cost of the backward passes that have a loss, in cell-steps over T: each covers at most k2 states."""
    T, steps = len(losses), 0
    for end in range(k1, T + k1, k1):
        if bool(losses[end - k1 : end].any()):
            steps += max(0, min(end, T) - max(0, end - k2))
    return steps / T


@dataclass(frozen=True)
class Chunk:
    """Chunked truncation: every k1 steps a backward pass through the last k2. None: k1, detached at each seam."""

    k1: int
    k2: int | None = None

    unbiased = False
    drawn = False

    def __post_init__(self) -> None:
        for name, value in (("k1", self.k1), ("k2", self.k2)):
            if value is not None:
                require_whole(name, value, "Give a whole number of steps, 1 or more.")

    @property
    def label(self) -> str:
        """Text for tables."""
        return f"chunk {self.k1}" if self.k2 is None else f"chunk ({self.k1}, {self.k2})"

    @property
    def back(self) -> int:
        """k2, the number of states that a backward pass covers."""
        return self.k1 if self.k2 is None else self.k2

    @staticmethod
    def recorded(step: RecordedStep) -> list[Estimator]:
        """The estimators of this kind that the callback scores."""
        if not step.can_be_cut:
            return []
        return [Chunk(step.short), Chunk(step.long), Chunk(step.short, step.long)]

    def outcomes(self, task: Task) -> Iterator[Estimate]:
        """The single outcome."""
        gradient = task.gradient(segments(task.chain, self.k1, self.back))
        cost = pass_cost(task.losses, self.k1, self.back)
        yield Estimate(1.0, gradient, cost, min(self.back, task.T) / task.T)

    def state_factors(self, T: int, draw: torch.Generator | None = None) -> Tensor:
        """For k1 = k2: 0 at the first step of every chunk except the first, else 1."""
        if self.back != self.k1:
            raise BadArgument(
                f"{self.label} is not a matter of cutting states.",
                "Use rnndiag.train.unroll, which runs the last k2 steps again.",
            )
        steps = torch.arange(T)
        return ((steps % self.k1 != 0) | (steps == 0)).double()
