"""Many to many, element by element: a prediction and a loss at every step."""

from __future__ import annotations

from torch import Tensor

from lightning_modules.batch import Batch
from lightning_modules.patterns.pattern import PATTERNS, MakeRecurrence, Pattern, head, reader
from lightning_modules.tasks.task import Task
from lightning_modules.training.estimator import Estimator


class Tagging(Pattern):
    """Predictions (T, B, O)."""

    def build(self, task: Task, make: MakeRecurrence, embedding: int | None) -> None:
        """Reader, recurrence, head."""
        self.reader, size = reader(task.inputs, embedding)
        self.recurrence = make(size)
        self.head = head(self.recurrence, task.output_size)

    def forward(self, batch: Batch, unroll: Estimator) -> Tensor:
        """One prediction a step."""
        outputs, _ = unroll(self.recurrence, self.reader(batch.inputs), None, batch.lengths)
        predictions: Tensor = self.head(outputs)
        return predictions


PATTERNS.add("tagging", Tagging)
