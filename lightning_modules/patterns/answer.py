"""Many to one: the whole sequence is read, then one answer is given."""

from __future__ import annotations

from torch import Tensor

from lightning_modules.batch import Batch
from lightning_modules.patterns.pattern import PATTERNS, MakeRecurrence, Pattern, head, reader
from lightning_modules.recurrence.recurrence import at_lengths
from lightning_modules.tasks.task import Task
from lightning_modules.training.estimator import Estimator


class Answer(Pattern):
    """Predictions (B, O), from the output at each sequence's own last step."""

    def build(self, task: Task, make: MakeRecurrence, embedding: int | None) -> None:
        """Reader, recurrence, head."""
        self.reader, size = reader(task.inputs, embedding)
        self.recurrence = make(size)
        self.head = head(self.recurrence, task.output_size)

    def forward(self, batch: Batch, unroll: Estimator) -> Tensor:
        """One prediction a sequence."""
        inputs = self.reader(batch.inputs)
        outputs, _ = unroll(self.recurrence, inputs, None, batch.lengths, last=True)
        predictions: Tensor = self.head(at_lengths(outputs, batch.lengths))
        return predictions


PATTERNS.add("answer", Answer)
