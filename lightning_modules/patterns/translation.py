"""Sequence to sequence: an encoder reads it all (many to one), a decoder says it (one to many)."""

from __future__ import annotations

from torch import Tensor

from lightning_modules.batch import Batch
from lightning_modules.patterns.decoder import Decoder
from lightning_modules.patterns.pattern import PATTERNS, MakeRecurrence, Pattern, reader
from lightning_modules.tasks.task import Task
from lightning_modules.training.estimator import Estimator
from rnndiag.errors import BadArgument


class Translation(Pattern):
    """The encoder's last state is the decoder's first. Outside of training the decoder is told what it said itself."""

    def build(self, task: Task, make: MakeRecurrence, embedding: int | None) -> None:
        """Encoder and decoder."""
        self.reader, size = reader(task.inputs, embedding)
        self.recurrence = make(size)
        self.decoder = Decoder(task.output_size, make, embedding)
        if self.recurrence.state_size != self.decoder.recurrence.state_size:
            raise BadArgument(
                "Encoder and decoder have states of different sizes.",
                "Take the same wiring for both.",
            )

    def forward(self, batch: Batch, unroll: Estimator) -> Tensor:
        """Predictions (T, B, O)."""
        _, state = unroll(self.recurrence, self.reader(batch.inputs), None, batch.lengths)
        forcing = self.teacher_forcing if self.training else 0.0
        predictions: Tensor = self.decoder(state, batch.targets, unroll, forcing)
        return predictions


PATTERNS.add("translation", Translation)
