"""The MLP transition with a skip connection, which makes the shortest path over a step one matrix again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.recurrence import Recurrence, Stepped
from lightning_modules.wirings.mlp_transition import MLPTransition
from lightning_modules.wirings.wiring import WIRINGS, Plan, Wiring


class SkipTransition(MLPTransition):
    """z = tanh(W_ih x + W_hh h), h_t = tanh(W_z z + W_s h)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.skip = nn.Linear(hidden, hidden, bias=False)

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The new (h,)."""
        z = torch.tanh(self.input(inputs) + self.recurrent(state[0]))
        return (torch.tanh(self.deep(z) + self.skip(state[0])),)


def build(plan: Plan) -> Recurrence:
    """One layer."""
    return Stepped(SkipTransition(plan.inputs, plan.hidden))


WIRINGS.add("skip_transition", Wiring("MLP in the transition, skipped", build, own_step=True))
