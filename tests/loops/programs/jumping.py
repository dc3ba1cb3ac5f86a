"""Programs in which a path leads around the state of the cell."""

from __future__ import annotations

import torch
from loops.programs.base import B, H, N, Program, State, listed
from torch import Tensor, nn


class Jumping(Program):
    """What leads around the state of the cell: `carry` measures it, without it the loop is open."""

    def build(self) -> None:
        self.cell, self.head, self.slow = nn.GRUCell(N, H), nn.Linear(H, 1), nn.GRUCell(H, H)


@listed
class HeldAtTheEnd(Jumping):
    """The state stays where a sequence has ended."""

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        ends = torch.tensor([[4.0], [7.0], [10.0]])
        h = torch.where(t < ends, self.cell(self.x[t], old["h"]), old["h"])
        return {"h": h}, self.head(h)


@listed
class Zoneout(Jumping):
    """Units keep their value at random."""

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        keeps = (self.masks[t] > 0).to(self.x)
        h = keeps * self.cell(self.x[t], old["h"]) + (1 - keeps) * old["h"]
        return {"h": h}, self.head(h)


@listed
class DilatedSkip(Jumping):
    """The state of three steps ago is added."""

    def start(self) -> State:
        return {name: torch.zeros(B, H) for name in ("h", "p1", "p2")}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(self.x[t], old["h"] + 0.5 * old["p2"])
        return {"h": h, "p1": old["h"], "p2": old["p1"]}, self.head(h)


@listed
class SlowAndFast(Jumping):
    """A slow cell runs every third step, and is added to the fast one's state."""

    def start(self) -> State:
        return {"h": torch.zeros(B, H), "slow": torch.zeros(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        slow = self.slow(old["h"], old["slow"]) if t % 3 == 0 else old["slow"]
        h = self.cell(self.x[t], old["h"] + slow)
        return {"h": h, "slow": slow}, self.head(h)
