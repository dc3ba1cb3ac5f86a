"""A step module in a loop over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.recurrence.recurrence import Recurrence, State, at_lengths


class StepModule(nn.Module):
    """One step: called as module(inputs (B, I), state) -> state, a tuple of (B, S_p), the first of them h."""

    parts: tuple[str, ...] = ("h",)
    sizes: tuple[int, ...]
    """S_p of every part."""


class Stepped(Recurrence):
    """One layer in one direction: `step` called once for every time step. Its output is the first state part,
    or all parts side by side where `join` says so."""

    def __init__(self, step: StepModule, join: bool = False, is_readout: bool = False) -> None:
        super().__init__()
        self.step = step
        self.parts = step.parts
        self.features = sum(step.sizes) if join else step.sizes[0]
        self.is_readout = is_readout
        self._join = join

    def forward(
        self, inputs: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Step by step. Steps beyond a sequence's length are made and never looked at."""
        now = self.initial(inputs, inputs.shape[1]) if state is None else state
        states: list[State] = []
        for step_inputs in inputs.unbind(0):
            now = self.step(step_inputs, now)
            states.append(now)
        sequences = [torch.stack(part) for part in zip(*states, strict=True)]
        outputs = torch.cat(sequences, -1) if self._join else sequences[0]
        if lengths is not None:
            now = tuple(at_lengths(sequence, lengths) for sequence in sequences)
        return outputs, now

    @property
    def state_size(self) -> int:
        """The sum of the parts' sizes."""
        return sum(self.step.sizes)

    def state_from(self, vector: Tensor) -> State:
        """(B, state_size) -> one tensor a part."""
        parts: State = vector.split(self.step.sizes, -1)
        return parts

    def layer_states(self, state: State) -> tuple[Tensor, ...]:
        """h alone, or every part of a step whose parts are layers of their own."""
        return state if self._join else state[:1]

    def layer_names(self, prefix: str) -> tuple[str, ...]:
        """The step module is the layer; parts that are layers of their own stand behind a colon."""
        if self._join:
            return tuple(f"{prefix}.step:{part}" for part in self.parts)
        return (f"{prefix}.step",)
