"""Source-step truncation: only contributions of the steps t >= K are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rnndiag.engine.truncation.estimators.estimator import Estimate, Estimator, RecordedStep, Task
from rnndiag.errors import require_whole


@dataclass(frozen=True)
class SourceStep:
    """Keeps the contributions of the source steps t = K .. T, counted from 1: K = 1 is the full gradient."""

    K: int

    unbiased = False
    drawn = False

    def __post_init__(self) -> None:
        require_whole("K", self.K, "Source steps count from 1.")

    @property
    def label(self) -> str:
        """Text for tables."""
        return f"source steps >= {self.K}"

    def source_factors(self, T: int, draw: object = None) -> torch.Tensor:
        """(T,): weight of every source step."""
        return (torch.arange(1, T + 1) >= self.K).double()

    @staticmethod
    def recorded(step: RecordedStep) -> list[Estimator]:
        """The estimators of this kind that the callback scores."""
        return [SourceStep(step.T - step.long)] if step.can_be_cut else []

    def outcomes(self, task: Task) -> Iterator[Estimate]:
        """The single outcome."""
        weights = self.source_factors(task.T).to(task.full)
        share = float(weights.mean())
        yield Estimate(1.0, task.gradient(task.adjoint, weights), share, share)
