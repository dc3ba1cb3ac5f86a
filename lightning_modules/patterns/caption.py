"""One to many: a CNN looks at a picture and starts a recurrence that describes it."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_modules.batch import Batch
from lightning_modules.patterns.decoder import Decoder
from lightning_modules.patterns.pattern import PATTERNS, MakeRecurrence, Pattern
from lightning_modules.tasks.task import Pictures, Task
from lightning_modules.training.estimator import Estimator
from rnndiag.errors import BadArgument

CHANNELS = 8


class Caption(Pattern):
    """The picture becomes the decoder's first state. Outside of training it is told what it said itself."""

    def build(self, task: Task, make: MakeRecurrence, embedding: int | None) -> None:
        """CNN and decoder."""
        if not isinstance(task.inputs, Pictures):
            raise BadArgument("The pattern 'caption' needs pictures.", "Take the task 'captions'.")
        self.decoder = Decoder(task.output_size, make, embedding)
        self.recurrence = self.decoder.recurrence
        side = task.inputs.side // 4
        self.cnn = nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * CHANNELS * side * side, self.recurrence.state_size),
            nn.Tanh(),
        )

    def forward(self, batch: Batch, unroll: Estimator) -> Tensor:
        """Predictions (T, B, O)."""
        state = self.recurrence.state_from(self.cnn(batch.inputs))
        forcing = self.teacher_forcing if self.training else 0.0
        predictions: Tensor = self.decoder(state, batch.targets, unroll, forcing)
        return predictions


PATTERNS.add("caption", Caption)
