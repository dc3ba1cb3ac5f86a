"""Programs whose outputs, or draws from them, are inputs of the next step."""

from __future__ import annotations

import torch
from loops.programs.base import B, H, N, Program, State, listed
from torch import Tensor, nn


@listed
class FreeRunning(Program):
    """A cell fed its own prediction (Jordan net)."""

    def build(self) -> None:
        self.cell, self.head = nn.GRUCell(N + 1, H), nn.Linear(H, 1)

    def start(self) -> State:
        return {"h": torch.zeros(B, H), "y": torch.zeros(B, 1)}

    def fed(self, t: int, old: State) -> Tensor:
        """What is fed back."""
        return old["y"]

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(torch.cat([self.x[t], self.fed(t, old)], 1), old["h"])
        y = self.head(h)
        return {"h": h, "y": y}, y


@listed
class TeacherForcedInPart(FreeRunning):
    """The true output at odd steps, the own prediction at even ones."""

    def fed(self, t: int, old: State) -> Tensor:
        return self.y[t - 1] if t % 2 else old["y"]


@listed
class AttentionDecoder(Program):
    """An LSTM decoder with attention over an encoder's outputs; context and prediction are fed back."""

    def build(self) -> None:
        self.encoder, self.query = nn.Linear(N, H), nn.Linear(H, H)
        self.cell, self.mix, self.head = (
            *(nn.LSTMCell(H + 1, H), nn.Linear(2 * H, H)),
            nn.Linear(H, 1),
        )

    def start(self) -> State:
        zeros = torch.zeros(B, H)
        self.memory = self.encoder(self.x).transpose(0, 1)
        return {"h": zeros, "c": zeros, "a": zeros, "y": torch.zeros(B, 1)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h, c = self.cell(torch.cat([old["a"], old["y"]], 1), (old["h"], old["c"]))
        weights = (self.memory @ self.query(h)[:, :, None]).softmax(1)
        context = (weights * self.memory).sum(1)
        a = self.mix(torch.cat([h, context], 1)).tanh()
        y = self.head(a)
        return {"h": h, "c": c, "a": a, "y": y}, y


@listed
class LatentDynamics(Program):
    """A recurrent state-space model: h from the last sample z, z from h and the observation."""

    def build(self) -> None:
        self.cell, self.posterior, self.head = (
            nn.GRUCell(H, H),
            nn.Linear(H + N, 2 * H),
            nn.Linear(2 * H, 1),
        )

    def start(self) -> State:
        return {"h": torch.zeros(B, H), "z": torch.zeros(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(old["z"], old["h"])
        mean, spread = self.posterior(torch.cat([h, self.x[t]], 1)).chunk(2, 1)
        z = mean + nn.functional.softplus(spread) * torch.randn(B, H)
        return {"h": h, "z": z}, self.head(torch.cat([h, z], 1))
