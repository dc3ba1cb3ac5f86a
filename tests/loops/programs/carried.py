"""Programs without a step module: `rnndiag.carry` marks the state."""

from __future__ import annotations

import torch
from loops.programs.base import B, H, N, Program, State, listed
from torch import Tensor, nn


class Carried(Program):
    """`carry` marks the state; there is no step module."""

    watched = None


@listed
class Rollout(Carried):
    """An autoregressive rollout: the state is two frames, and a border is overwritten with the truth."""

    def build(self) -> None:
        self.f = nn.Sequential(nn.Linear(2 * H + N, 8), nn.Tanh(), nn.Linear(8, H))
        self.head, self.inside = nn.Linear(H, 1), torch.tensor([0.0, 1.0, 1.0, 0.0])

    def start(self) -> State:
        return {"before": torch.zeros(B, H), "now": torch.ones(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        before, now = old["before"], old["now"]
        new = now + 0.5 * self.f(torch.cat([now, before, self.x[t]], 1))
        new = self.inside * new + (1 - self.inside) * self.masks[t]
        return {"before": now, "now": new}, self.head(new)


@listed
class LoopedTransformer(Carried):
    """One block with attention, run over and over on the same tokens; the loss at the end."""

    at_end = True

    def build(self) -> None:
        self.attend = nn.MultiheadAttention(H, 2, batch_first=True)
        self.norm, self.mlp, self.head = nn.LayerNorm(H), nn.Linear(H, H), nn.Linear(H, 1)

    def start(self) -> State:
        return {"z": self.masks[:5].transpose(0, 1)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        z = old["z"]
        z = self.norm(z + self.attend(z, z, z, need_weights=False)[0])
        z = z + self.mlp(z).relu()
        return {"z": z}, self.head(z.mean(1))


@listed
class Reasoning(Carried):
    """Nested steps on two states, after cycles without a gradient."""

    at_end = True

    def build(self) -> None:
        self.core, self.head = (
            nn.Sequential(nn.Linear(H, 8), nn.GELU(), nn.Linear(8, H)),
            nn.Linear(H, 1),
        )

    def cycle(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Three inner steps and an outer one."""
        for _ in range(3):
            z = self.core(self.masks[0] + y + z)
        return self.core(y + z), z

    def start(self) -> State:
        y = z = torch.zeros(B, H)
        with torch.no_grad():
            for _ in range(3):
                y, z = self.cycle(y, z)
        return {"y": y, "z": z}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        y, z = self.cycle(old["y"], old["z"])
        return {"y": y, "z": z}, self.head(y)


@listed
class MinimalGRU(Carried):
    """minGRU as a loop: gates see the input only."""

    def build(self) -> None:
        self.z, self.new, self.head = nn.Linear(N, H), nn.Linear(N, H), nn.Linear(H, 1)

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        z = self.z(self.x[t]).sigmoid()
        h = (1 - z) * old["h"] + z * self.new(self.x[t])
        return {"h": h}, self.head(h)


@listed
class ComplexUnits(Carried):
    """A linear recurrent unit: a diagonal of complex numbers, as a loop."""

    def build(self) -> None:
        self.decay = nn.Parameter(torch.complex(torch.full((H,), 0.5), torch.rand(H) * 0.3))
        self.b, self.head = nn.Linear(N, H), nn.Linear(2 * H, 1)

    def start(self) -> State:
        return {"h": torch.zeros(B, H) + 0j}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.decay * old["h"] + self.b(self.x[t])
        return {"h": h}, self.head(torch.cat([h.real, h.imag], 1))


@listed
class StartsAsNone(Carried):
    """The state is None before the first step."""

    def build(self) -> None:
        self.a, self.b, self.head = nn.Linear(N, H), nn.Linear(H, H), nn.Linear(H, 1)

    def start(self) -> State:
        return {"h": None}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.a(self.x[t]) if old["h"] is None else self.a(self.x[t]) + self.b(old["h"])
        return {"h": h.tanh()}, self.head(h.tanh())
