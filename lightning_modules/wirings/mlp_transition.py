"""An MLP inside the transition: two layers of tanh lie between one state and the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.recurrence import Recurrence, Stepped
from lightning_modules.recurrence.stepped import StepModule
from lightning_modules.wirings.wiring import WIRINGS, Plan, Wiring


class MLPTransition(StepModule):
    """z = tanh(W_ih x + W_hh h), h_t = tanh(W_z z): the shortest path over one step has two matrices."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.sizes = (hidden,)
        self.input = nn.Linear(inputs, hidden)
        self.recurrent = nn.Linear(hidden, hidden, bias=False)
        self.deep = nn.Linear(hidden, hidden)

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The new (h,)."""
        z = torch.tanh(self.input(inputs) + self.recurrent(state[0]))
        return (torch.tanh(self.deep(z)),)


def build(plan: Plan) -> Recurrence:
    """One layer."""
    return Stepped(MLPTransition(plan.inputs, plan.hidden))


WIRINGS.add("mlp_transition", Wiring("MLP in the transition", build, own_step=True))
