"""Hierarchical state groups with different speeds: the first of the three ways to make a recurrence deep."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.recurrence import Recurrence, Stepped
from lightning_modules.recurrence.stepped import StepModule
from lightning_modules.wirings.wiring import WIRINGS, Plan, Wiring

SPEEDS = (1.0, 0.25, 0.0625)
"""How much of a group's state each step replaces: the lowest group follows the input, the highest drifts."""


class HierarchicalGroups(StepModule):
    """h^g_t = (1 - a_g) h^g_{t-1} + a_g tanh(W_g below + U_g h^g_{t-1}), below the input or h^{g-1}_t."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.parts = tuple(f"h{number}" for number in range(1, len(SPEEDS) + 1))
        self.sizes = (hidden,) * len(SPEEDS)
        belows = (inputs, *self.sizes[:-1])
        self.below = nn.ModuleList([nn.Linear(size, hidden) for size in belows])
        self.own = nn.ModuleList([nn.Linear(hidden, hidden, bias=False) for _ in SPEEDS])

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The new state of every group."""
        after: list[Tensor] = []
        for speed, below, own, h in zip(SPEEDS, self.below, self.own, state, strict=True):
            target = torch.tanh(below(after[-1] if after else inputs) + own(h))
            after.append(h + speed * (target - h))
        return tuple(after)


def build(plan: Plan) -> Recurrence:
    """All groups reach the output."""
    return Stepped(HierarchicalGroups(plan.inputs, plan.hidden), join=True)


WIRINGS.add("groups", Wiring("hierarchical groups, slower upwards", build, own_step=True))
