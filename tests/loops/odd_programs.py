"""Loops that nobody asked for: what is called exact must be right, and what is not must be withdrawn."""

from __future__ import annotations

from typing import Any

import torch
from loops.programs.base import B, H, N, Program, State
from loops.programs.between_steps import Between
from loops.programs.carried import Carried
from torch import Tensor, nn
from torch.func import functional_call, vmap

EXACT: dict[str, type[Program]] = {}
OPEN: dict[str, type[Program]] = {}


def exact(program: type[Program]) -> type[Program]:
    EXACT[program.__name__] = program
    return program


def withdrawn(program: type[Program]) -> type[Program]:
    OPEN[program.__name__] = program
    return program


@exact
class WrittenInPlace(Between):
    """Between two calls."""

    def change(self, t: int, h: Tensor) -> Tensor:
        return h.clone().mul_(0.9)


@exact
class LossInTheMiddle(Program):
    """Later steps have no loss."""

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(self.x[t], old["h"] * 0.9)
        return {"h": h}, self.head(h) if t == 5 else self.y[t]


@exact
class TwoCellsOnOneState(Program):
    """They take turns."""

    watched = "cell+two"

    def build(self) -> None:
        self.cell, self.two, self.head = nn.GRUCell(N, H), nn.RNNCell(N, H), nn.Linear(H, 1)

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.two(self.x[t], self.cell(self.x[t], old["h"]))
        return {"h": h}, self.head(h)


@exact
class CrossedCells(Program):
    """Two LSTM cells exchange their c."""

    watched = "cell+two"

    def build(self) -> None:
        self.cell, self.two, self.head = nn.LSTMCell(N, H), nn.LSTMCell(N, H), nn.Linear(H, 1)

    def start(self) -> State:
        return {name: torch.zeros(B, H) for name in ("h", "c", "h2", "c2")}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h, c = self.cell(self.x[t], (old["h"], old["c2"]))
        h2, c2 = self.two(self.x[t], (old["h2"], old["c"]))
        return {"h": h, "c": c, "h2": h2, "c2": c2}, self.head(h + h2)


class DictCell(nn.Module):
    """State and output in one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(N, H), nn.Linear(H, H)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        h = (self.a(x) + self.b(state["h"])).tanh()
        return {"h": h, "out": h * 2}


@exact
class DictState(Program):
    """The step takes a dict and returns one."""

    def build(self) -> None:
        self.cell, self.head = DictCell(), nn.Linear(H, 1)

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        found = self.cell(self.x[t], {"h": old["h"]})
        return {"h": found["h"]}, self.head(found["out"])


class NormCell(nn.Module):
    """Batch normalisation inside of the step: biases before it have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(N, H), nn.Linear(H, H), nn.BatchNorm1d(H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.norm(self.a(x) + self.b(h)).tanh()


@exact
class BatchNormalised(Program):
    """The samples of a step are mixed."""

    def build(self) -> None:
        self.cell, self.head = NormCell(), nn.Linear(H, 1)

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(self.x[t], old["h"])
        return {"h": h}, self.head(h)


@exact
class StateGatesInput(Program):
    """The state reaches the cell by its input too."""

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(self.x[t] * (1 + old["h"][:, :N]), old["h"])
        return {"h": h}, self.head(h)


@exact
class ResetToLearned(Program):
    """Episodes end, and the state begins anew from a parameter."""

    def build(self) -> None:
        self.cell, self.head = nn.GRUCell(N, H), nn.Linear(H, 1)
        self.first = nn.Parameter(torch.randn(1, H))

    def start(self) -> State:
        return {"h": self.first.expand(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = torch.where(self.keeps[t] > 0, old["h"], self.first.expand(B, H))
        h = self.cell(self.x[t], h)
        return {"h": h}, self.head(h)


@exact
class TiedReadout(Program):
    """The readout uses a weight of the cell."""

    def build(self) -> None:
        self.cell, self.head = nn.RNNCell(N, H), nn.Linear(H, 1)

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(self.x[t], old["h"] * 1.1)
        return {"h": h}, self.head(h @ self.cell.weight_hh)


@exact
class GatesBeforeTheLoop(Carried):
    """No step uses a parameter directly."""

    def build(self) -> None:
        self.z, self.new, self.head = nn.Linear(N, H), nn.Linear(N, H), nn.Linear(H, 1)

    def start(self) -> State:
        self.gates, self.news = self.z(self.x).sigmoid(), self.new(self.x)
        return {"h": torch.zeros(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = (1 - self.gates[t]) * old["h"] + self.gates[t] * self.news[t]
        return {"h": h}, self.head(h)


@withdrawn
class SideBranch(Program):
    """Two calls go on from one state."""

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(self.x[t], old["h"])
        aside = self.cell(-self.x[t], old["h"]) if t else h
        return {"h": h}, self.head(h + aside)


@withdrawn
class AttentionToThePast(Program):
    """Each step reads all states before it."""

    def start(self) -> State:
        self.past: list[Tensor] = []
        return {"h": torch.zeros(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        context = torch.stack(self.past).mean(0) if self.past else torch.zeros(B, H)
        h = self.cell(self.x[t], old["h"] + context)
        self.past.append(h)
        return {"h": h}, self.head(h)


@withdrawn
class SubsetOfTheBatch(Program):
    """Two of three samples move on."""

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        rows = torch.tensor([0, 2] if t % 2 else [1, 2])
        h = old["h"].index_copy(0, rows, self.cell(self.x[t][rows], old["h"][rows]))
        return {"h": h}, self.head(h)


class Clamped(torch.autograd.Function):
    """A gradient that is not linear in what arrives."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clamp(-0.05, 0.05)


@withdrawn
class ClampedGradient(Between):
    """Between two steps."""

    def change(self, t: int, h: Tensor) -> Tensor:
        return Clamped.apply(h)  # type: ignore[no-any-return,no-untyped-call]


class Hidden(nn.Module):
    """A momentum kept in an attribute, which no state shows."""

    def __init__(self, of_h: float) -> None:
        super().__init__()
        self.a, self.b, self.of_h = nn.Linear(N, H), nn.Linear(H, H), of_h
        self.v: Tensor | None = None

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        before = torch.zeros_like(h) if self.v is None else self.v
        self.v = 0.7 * before + self.a(x) + self.of_h * h
        return (self.v + self.b(h)).tanh()


@withdrawn
class HiddenMomentum(Program):
    """Of the inputs."""

    of_h = 0.0

    def build(self) -> None:
        self.cell, self.head = Hidden(self.of_h), nn.Linear(H, 1)

    def start(self) -> State:
        self.cell.v = None
        return {"h": torch.zeros(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(self.x[t], old["h"])
        return {"h": h}, self.head(h)


@withdrawn
class HiddenMomentumOfTheState(HiddenMomentum):
    """Of the state too."""

    of_h = 0.3


@withdrawn
class AverageRead(Program):
    """Every loss reads a running sum of the states."""

    def start(self) -> State:
        return {"h": torch.zeros(B, H), "sum": torch.zeros(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(self.x[t], old["h"])
        return {"h": h, "sum": old["sum"] + h}, self.head((old["sum"] + h).tanh())


@withdrawn
class AttendsToItsPast(Program):
    """Attention over all past states, which `carry` may take as a tuple that grows."""

    def start(self) -> State:
        return {"h": torch.zeros(B, H), "past": ()}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h, past = old["h"], old["past"]
        if past:
            memory = torch.stack(past, 1)
            h = h + ((memory @ h[:, :, None]).softmax(1) * memory).sum(1)
        h = self.cell(self.x[t], h)
        return {"h": h, "past": (*past, h)}, self.head(h)


@withdrawn
class ExternalMemory(Program):
    """A memory that the cell writes to and reads from."""

    def build(self) -> None:
        self.cell, self.head, self.key = (
            *(nn.GRUCell(N + H, H), nn.Linear(H, 1)),
            nn.Linear(H, 3),
        )

    def start(self) -> State:
        return {"h": torch.zeros(B, H), "memory": torch.zeros(B, 3, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        weights = self.key(old["h"]).softmax(1)[:, :, None]
        read = (weights * old["memory"]).sum(1)
        h = self.cell(torch.cat([self.x[t], read], 1), old["h"])
        memory = old["memory"] * (1 - weights) + weights * h[:, None]
        return {"h": h, "memory": memory}, self.head(h + read)


@withdrawn
class UpdatedInPart(Program):
    """Only the samples that a mask holds are computed."""

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        index = (self.keeps[t][:, 0] > 0).nonzero()[:, 0]
        h = old["h"].index_copy(0, index, self.cell(self.x[t][index], old["h"][index]))
        return {"h": h}, self.head(h)


@exact
class CutInTheStep(Program):
    """Truncated by hand inside of one backward pass: the state is detached at every third step."""

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = old["h"].detach() if t % 3 == 0 else old["h"]
        h = self.cell(self.x[t], 0.8 * h)
        return {"h": h}, self.head(h)


@exact
class WeightsAnewInEveryStep(Program):
    """functional_call with tensors made from the parameters, which die with the step."""

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        made = {key: value * 1.1 for key, value in self.cell.named_parameters()}
        h = functional_call(self.cell, made, (self.x[t], 0.9 * old["h"]))
        return {"h": h}, self.head(h)


class Reversed(torch.autograd.Function):
    """Gives the gradient on with its sign changed."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -0.3 * gradient


@exact
class GradientReversed(Between):
    """By a function of the user's own."""

    def change(self, t: int, h: Tensor) -> Tensor:
        return Reversed.apply(h)


@exact
class MappedStep(Program):
    """Three ensembles by torch.func.vmap, their axis first."""

    watched = None

    def build(self) -> None:
        self.a, self.b = nn.Linear(N, H), nn.Parameter(torch.randn(3, H, H) / H)
        self.head = nn.Linear(H, 1)

    def start(self) -> State:
        return {"h": torch.zeros(3, B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = vmap(lambda h, b: (self.a(self.x[t]) + h @ b).tanh())(old["h"], self.b)
        return {"h": h}, self.head(h.mean(0))
