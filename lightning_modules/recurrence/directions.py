"""Two recurrences over the same sequence, one in each direction of time."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.recurrence.recurrence import Recurrence, State, reversed_within


class BothDirections(Recurrence):
    """Outputs of both directions side by side. For step modules; torch's layers have it built in."""

    causal = False

    def __init__(self, forward_run: Recurrence, backward_run: Recurrence) -> None:
        super().__init__()
        self.forward_run = forward_run
        self.backward_run = backward_run
        self.features = forward_run.features + backward_run.features
        self.parts = forward_run.parts + backward_run.parts

    def forward(
        self, inputs: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Each direction within each sequence's own length."""
        count = len(self.forward_run.parts)
        first, second = (None, None) if state is None else (state[:count], state[count:])
        onward, after = self.forward_run(inputs, first, lengths)
        back, before = self.backward_run(reversed_within(inputs, lengths), second, lengths)
        return torch.cat([onward, reversed_within(back, lengths)], -1), after + before

    @property
    def state_size(self) -> int:
        """Both directions together."""
        return self.forward_run.state_size + self.backward_run.state_size

    def state_from(self, vector: Tensor) -> State:
        """(B, state_size) -> the states of both directions."""
        sizes = [self.forward_run.state_size, self.backward_run.state_size]
        first, second = vector.split(sizes, -1)
        return self.forward_run.state_from(first) + self.backward_run.state_from(second)

    def layer_states(self, state: State) -> tuple[Tensor, ...]:
        """h of both directions."""
        count = len(self.forward_run.parts)
        first = self.forward_run.layer_states(state[:count])
        return first + self.backward_run.layer_states(state[count:])

    def layer_names(self, prefix: str) -> tuple[str, ...]:
        """Forwards first."""
        forward = self.forward_run.layer_names(f"{prefix}.forward_run")
        return forward + self.backward_run.layer_names(f"{prefix}.backward_run")
