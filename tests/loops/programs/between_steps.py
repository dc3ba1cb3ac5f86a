"""Programs that change the state, or its gradient, between two calls of the cell."""

from __future__ import annotations

import torch
from loops.programs.base import B, H, N, Program, State, listed
from torch import Tensor, nn


class Between(Program):
    """The state is changed between calls."""

    def build(self) -> None:
        self.cell, self.head, self.norm = nn.GRUCell(N, H), nn.Linear(H, 1), nn.LayerNorm(H)

    def change(self, t: int, h: Tensor) -> Tensor:
        """What is done with the state."""
        raise NotImplementedError

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(self.x[t], self.change(t, old["h"]))
        return {"h": h}, self.head(h)


@listed
class StateScaled(Between):
    """Every fourth step."""

    def change(self, t: int, h: Tensor) -> Tensor:
        return h * 0.5 if t % 4 == 0 else h


@listed
class StateNormalised(Between):
    """Layer normalisation at every step."""

    def change(self, t: int, h: Tensor) -> Tensor:
        return self.norm(h)


@listed
class StateReordered(Between):
    """As in a beam search."""

    def change(self, t: int, h: Tensor) -> Tensor:
        return h[torch.tensor([2, 0, 1])]


@listed
class UnitsRolled(Between):
    """The units change places."""

    def change(self, t: int, h: Tensor) -> Tensor:
        return h.roll(1, 1)


@listed
class VariationalDropout(Between):
    """One mask for all steps."""

    def change(self, t: int, h: Tensor) -> Tensor:
        return h * self.masks[0]


@listed
class RecurrentDropout(Between):
    """A mask a step."""

    def change(self, t: int, h: Tensor) -> Tensor:
        return nn.functional.dropout(h, 0.3)


@listed
class DoneMask(Between):
    """Episodes end, and their state is zero."""

    def change(self, t: int, h: Tensor) -> Tensor:
        return h * self.keeps[t]


@listed
class GradientHalved(Program):
    """By a hook on the state."""

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(self.x[t], old["h"])
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient * 0.5)
        return {"h": h}, self.head(h)


@listed
class OneLossAtTheEnd(Between):
    """Scaled at every step."""

    at_end = True

    def change(self, t: int, h: Tensor) -> Tensor:
        return h * 0.9


@listed
class HiddenPartDetached(Program):
    """h is detached, c is not."""

    def build(self) -> None:
        self.cell, self.head = nn.LSTMCell(N, H), nn.Linear(H, 1)

    def start(self) -> State:
        return {"h": torch.zeros(B, H), "c": torch.zeros(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h, c = self.cell(self.x[t], (old["h"].detach(), old["c"]))
        return {"h": h, "c": c}, self.head(h)


class DropoutCell(nn.Module):
    """Dropout inside of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(N, H), nn.Linear(H, H), nn.Dropout(0.3)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return (self.a(x) + self.b(self.drop(h))).tanh()


@listed
class DropoutInside(Between):
    """The step draws random numbers."""

    def build(self) -> None:
        self.cell, self.head = DropoutCell(), nn.Linear(H, 1)

    def change(self, t: int, h: Tensor) -> Tensor:
        return h


@listed
class EulerBetween(Program):
    """ODE-RNN: the state flows by Euler steps between observations."""

    def build(self) -> None:
        self.cell, self.head, self.flow = nn.GRUCell(N, H), nn.Linear(H, 1), nn.Linear(H, H)

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = old["h"]
        for _ in range(1 + t % 3):
            h = h + 0.3 * self.flow(h).tanh()
        h = self.cell(self.x[t], h)
        return {"h": h}, self.head(h)
