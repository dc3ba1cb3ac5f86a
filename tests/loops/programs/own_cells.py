"""Programs with a cell of their own: several states, other arguments, other orders of arguments."""

from __future__ import annotations

from typing import Any

import torch
from loops.programs.base import B, H, N, Program, State, listed
from torch import Tensor, nn
from torch.func import functional_call


class ScalarLSTM(nn.Module):
    """An sLSTM cell: exponential gates with a normaliser and a stabiliser; forward(x, h, c, n, m)."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.r = nn.Linear(N, 4 * H), nn.Linear(H, 4 * H, bias=False)

    def forward(
        self, x: Tensor, h: Tensor, c: Tensor, n: Tensor, m: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z, i, f, o = (self.w(x) + self.r(h)).chunk(4, 1)
        log_f = nn.functional.logsigmoid(f)
        new_m = torch.maximum(log_f + m, i)
        i, f = (i - new_m).exp(), (log_f + m - new_m).exp()
        c, n = f * c + i * z.tanh(), f * n + i
        return o.sigmoid() * c / n, c, n, new_m


@listed
class ScalarMemory(Program):
    """sLSTM cells in a loop."""

    def build(self) -> None:
        self.cell, self.head = ScalarLSTM(), nn.Linear(H, 1)

    def start(self) -> State:
        zeros = torch.zeros(B, H)
        return {"h": zeros, "c": zeros, "n": zeros, "m": zeros}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h, c, n, m = self.cell(self.x[t], old["h"], old["c"], old["n"], old["m"])
        return {"h": h, "c": c, "n": n, "m": m}, self.head(h)


class MatrixLSTM(nn.Module):
    """An mLSTM cell: a matrix memory of outer products; forward(x, state) gives (output, state)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.gates, self.o = nn.Linear(N, 3 * H), nn.Linear(N, 2), nn.Linear(N, H)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        memory, n, m = state
        q, k, v = self.qkv(x).chunk(3, 1)
        i, f = self.gates(x).chunk(2, 1)
        log_f = nn.functional.logsigmoid(f)
        new_m = torch.maximum(log_f + m, i)
        i, f = (i - new_m).exp(), (log_f + m - new_m).exp()
        memory = f[:, :, None] * memory + i[:, :, None] * v[:, :, None] * k[:, None, :] / H**0.5
        n = f * n + i * k / H**0.5
        size = (n * q).sum(1, keepdim=True).abs().clamp(min=1.0)
        read = (memory @ q[:, :, None]).squeeze(2) / size
        return self.o(x).sigmoid() * read, (memory, n, new_m)


@listed
class MatrixMemory(Program):
    """mLSTM cells in a loop."""

    def build(self) -> None:
        self.cell, self.head = MatrixLSTM(), nn.Linear(H, 1)

    def start(self) -> State:
        return {"s": (torch.zeros(B, H, H), torch.zeros(B, H), torch.zeros(B, 1))}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        out, state = self.cell(self.x[t], old["s"])
        return {"s": state}, self.head(out)


class GraphGRU(nn.Module):
    """A GRU cell of a graph diffusion network: forward(x, h, supports), state (batch, nodes, units)."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.new = nn.Linear(2 * (N + H), 2 * H), nn.Linear(2 * (N + H), H)

    def forward(self, x: Tensor, h: Tensor, supports: list[Tensor]) -> Tensor:
        def diffuse(value: Tensor) -> Tensor:
            return torch.cat([support @ value for support in supports], -1)

        u, r = self.gates(diffuse(torch.cat([x, h], -1))).sigmoid().chunk(2, -1)
        new = self.new(diffuse(torch.cat([x, r * h], -1))).tanh()
        return u * h + (1 - u) * new


@listed
class GraphDiffusion(Program):
    """Graph GRU cells in a loop, with extra arguments."""

    nodes = 3

    def build(self) -> None:
        self.cell, self.head = GraphGRU(), nn.Linear(H, 1)
        self.supports = [torch.eye(self.nodes), torch.rand(self.nodes, self.nodes).softmax(1)]

    def start(self) -> State:
        return {"h": torch.zeros(B, self.nodes, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        x = self.x[t][:, None].expand(B, self.nodes, N)
        h = self.cell(x, old["h"], self.supports)
        return {"h": h}, self.head(h).mean(1)


@listed
class ScaledWeights(Program):
    """The cell runs on scaled weights through functional_call, as after an inner step of MAML."""

    def build(self) -> None:
        self.cell, self.head, self.gain = nn.GRUCell(N, H), nn.Linear(H, 1), nn.Linear(1, 1)

    def start(self) -> State:
        self.fast = {name: value * 0.8 for name, value in self.cell.named_parameters()}
        return {"h": torch.zeros(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = functional_call(self.cell, self.fast, (self.x[t], old["h"]))
        return {"h": h}, self.head(h)


class Spike(torch.autograd.Function):
    """A threshold with a surrogate gradient."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradient / (1 + 3.0 * v.abs()) ** 2


class Neurons(nn.Module):
    """Leaky integrate-and-fire neurons: forward(x, mem) gives (spikes, mem)."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.leak = nn.Linear(N, H), nn.Parameter(torch.full((H,), 0.6))

    def forward(self, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        mem = self.leak * mem + self.inputs(x)
        spikes = Spike.apply(mem - 0.5)
        return spikes, mem - spikes * 0.5


@listed
class SpikingNeurons(Program):
    """Integrate-and-fire neurons as a step module."""

    def build(self) -> None:
        self.cell, self.head = Neurons(), nn.Linear(H, 1)

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        spikes, mem = self.cell(self.x[t], old["h"])
        return {"h": mem}, self.head(spikes)


class StateFirst(nn.Module):
    """A step called as (h, x), which returns (state, output)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(N, H), nn.Linear(H, H), nn.Linear(H, H)

    def forward(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = (self.a(x) + self.b(h)).tanh()
        return h, self.o(h)


@listed
class StateBeforeInput(Program):
    """A step called as (h, x), which returns (state, output)."""

    def build(self) -> None:
        self.cell, self.head = StateFirst(), nn.Linear(H, 1)

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h, out = self.cell(old["h"], self.x[t])
        return {"h": h}, self.head(out)


class NormalisedCell(nn.Module):
    """A GRU cell whose state is normalised before it is handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.GRUCell(N, H), nn.LayerNorm(H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.norm(self.inner(x, h))


@listed
class WrappedCell(Program):
    """A registered cell inside of a module with a normalisation."""

    watched = "cell.inner"

    def build(self) -> None:
        self.cell, self.head = NormalisedCell(), nn.Linear(H, 1)

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(self.x[t], old["h"])
        return {"h": h}, self.head(h)


class Residual(nn.Module):
    """A step on the state alone."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(H, H)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.f(h).tanh()


@listed
class OneArgument(Program):
    """A module that takes the state and nothing else, named in `steps`."""

    steps = ("cell",)

    def build(self) -> None:
        self.cell, self.head = Residual(), nn.Linear(H, 1)

    def start(self) -> State:
        return {"h": self.masks[0]}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h = self.cell(old["h"])
        return {"h": h}, self.head(h)
