"""The original LSTM rule of 1997: the gradient flows back in time through the carried cell alone, not through h."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rnndiag.engine.truncation.estimators.estimator import Estimate, Estimator, RecordedStep, Task
from rnndiag.engine.truncation.sweep.truncated_adjoints import scan
from rnndiag.errors import NotSupported


@dataclass(frozen=True)
class CellOnly:
    """No gradient crosses a step through part 0 of a state (h); the other parts (c) pass it unchanged."""

    unbiased = False
    drawn = False
    label = "cell only"

    @staticmethod
    def recorded(step: RecordedStep) -> list[Estimator]:
        """The estimators of this kind that the callback scores."""
        return [CellOnly()] if step.parts > 1 else []

    def outcomes(self, task: Task) -> Iterator[Estimate]:
        """The single outcome."""
        keep: list[bool] = []
        for link in task.chain.links:
            parts = link.run.cell.parts
            if len(parts) < 2:
                raise NotSupported(
                    f"The cell {link.run.cell.name!r} carries nothing but h.",
                    "Cell-only truncation is for cells with a state beside h, such as LSTMs.",
                )
            keep += [False, *[True] * (len(parts) - 1)]
        found = scan(task.chain, keep=tuple(keep))
        gradient = task.gradient(tuple(part.squeeze(1) for part in found))
        yield Estimate(1.0, gradient, 1.0, 1.0)
