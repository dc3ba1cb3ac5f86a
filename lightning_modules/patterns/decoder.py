"""Saying a sequence: each step is told the token before it, the right one or the one it said."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.patterns.pattern import MakeRecurrence, head
from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.training.estimator import Estimator
from rnndiag.errors import BadArgument


class Decoder(nn.Module):
    """Starts from a state and the start token; predictions (T, B, O)."""

    def __init__(self, outputs: int, make: MakeRecurrence, embedding: int | None) -> None:
        super().__init__()
        size = embedding or outputs + 1
        self.start = outputs
        self.reader = nn.Embedding(outputs + 1, size)
        self.recurrence: Recurrence = make(size)
        if not self.recurrence.causal or self.recurrence.is_readout:
            raise BadArgument(
                "A decoder says one token after another from a state of its own.",
                "Take the wiring 'stack'.",
            )
        self.head = head(self.recurrence, outputs)

    def forward(
        self, state: State, targets: Tensor, unroll: Estimator, teacher_forcing: float
    ) -> Tensor:
        """Teacher forcing for the whole minibatch with that probability; otherwise what it said is fed back."""
        steps, batch = targets.shape
        start = torch.full((1, batch), self.start, device=targets.device)
        if teacher_forcing > 0.0 and (teacher_forcing == 1.0 or torch.rand(()) < teacher_forcing):
            told = torch.cat([start, targets[:-1].clamp(min=0)])
            outputs, _ = unroll(self.recurrence, self.reader(told), state)
            forced: Tensor = self.head(outputs)
            return forced
        said, predictions = start, []
        for _ in range(steps):
            output, state = self.recurrence(self.reader(said), state)
            predictions.append(self.head(output))
            said = predictions[-1].detach().argmax(-1)
        return torch.cat(predictions)
