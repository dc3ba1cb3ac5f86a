"""A uniform truncation point: K uniform on 1..T, the source steps i >= K kept and rescaled by T/i."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.estimators.estimator import Estimate, Estimator, RecordedStep, Task
from rnndiag.engine.truncation.sweep.truncated_adjoints import step_gradients


@dataclass(frozen=True)
class Uniform:
    """Keeps the source steps i >= K, for K uniform on 1 .. T, with weight T/i = 1/P(K <= i). Unbiased."""

    unbiased = True
    drawn = False
    label = "uniform truncation point"

    def source_factors(self, T: int, draw: torch.Generator | None = None) -> Tensor:
        """(T,): weight of every source step, for one drawn K."""
        K = int(torch.randint(1, T + 1, (1,), generator=draw))
        steps = torch.arange(1, T + 1)
        return torch.where(steps >= K, T / steps.double(), torch.zeros(T, dtype=torch.float64))

    @staticmethod
    def recorded(step: RecordedStep) -> list[Estimator]:
        """The estimators of this kind that the callback scores."""
        return [Uniform()]

    def outcomes(self, task: Task) -> Iterator[Estimate]:
        """All T values of K, from T down to 1: each adds one source step to the one before."""
        T = task.T
        running = torch.zeros_like(task.full)
        for t, step in step_gradients(task.chain, task.layout, task.adjoint):
            running = running + step * (T / (t + 1))
            share = (T - t) / T
            yield Estimate(1 / T, running, share, share)
