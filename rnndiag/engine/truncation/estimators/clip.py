"""Norm clipping applied to any estimator: a rescaling that keeps the relative contribution of every lag."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rnndiag.engine.truncation.estimators.chunk import Chunk
from rnndiag.engine.truncation.estimators.estimator import Estimate, Estimator, RecordedStep, Task
from rnndiag.engine.truncation.estimators.full import Full
from rnndiag.errors import BadArgument


@dataclass(frozen=True)
class Clip:
    """g * min(1, max_norm / |g|), the norm over all parameters of the layer (or stack)."""

    max_norm: float
    of: Estimator = field(default_factory=Full)

    unbiased = False

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise BadArgument(f"max_norm is {self.max_norm}.", "Give a positive norm.")

    @property
    def drawn(self) -> bool:
        """Whether the clipped estimator is drawn."""
        return self.of.drawn

    @property
    def label(self) -> str:
        """Text for tables."""
        return f"{self.of.label}, clipped at {self.max_norm:g}"

    @staticmethod
    def recorded(step: RecordedStep) -> list[Estimator]:
        """The estimators of this kind that the callback scores."""
        found: list[Estimator] = [Clip(step.clip_norm, Full())]
        if step.can_be_cut:
            found.append(Clip(step.clip_norm, Chunk(step.long)))
        return found

    def outcomes(self, task: Task) -> Iterator[Estimate]:
        """The outcomes of the other estimator, each rescaled by its own norm."""
        for outcome in self.of.outcomes(task):
            size = float(outcome.gradient.norm())
            factor = min(1.0, self.max_norm / size) if size else 1.0
            yield replace(outcome, gradient=outcome.gradient * factor)
