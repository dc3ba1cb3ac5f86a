"""Programs that loop over a state in the ways of published models, each written as one step on a dict of tensors.

`Program.window` is the reference: the gradient of a truncation window, by detaching the state by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

B, N, H = 3, 2, 4
"""Samples, inputs and units."""

State = dict[str, Any]


class Program(nn.Module):
    """One step as a function of the state, and the loop over it.

    `watched` is the module whose outputs are the state, or several joined by `+`; None where `carry` marks it.
    """

    T = 10
    watched: str | None = "cell"
    at_end = False
    """Whether only the last step has a loss."""
    steps: tuple[str, ...] = ()
    """Modules to be named to the recorder."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.x, self.y = (torch.randn(self.T, B, n, generator=draw) for n in (N, 1))
        self.keeps = (torch.rand(self.T, B, 1, generator=draw) < 0.7).to(self.x)
        self.masks = (torch.rand(self.T, B, H, generator=draw) < 0.7).to(self.x) / 0.7
        self.build()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(1.5)

    def build(self) -> None:
        """The modules."""
        self.cell, self.head = nn.GRUCell(N, H), nn.Linear(H, 1)

    def start(self) -> State:
        """The first state."""
        return {"h": torch.zeros(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        """The next state, and what the loss of this step reads."""
        raise NotImplementedError

    def run(self, cut: int | None = None, only: int | None = None, carry: Any = None) -> Tensor:
        """The loss; with `only`, that of one step, with the state detached so that it reaches `cut` steps."""
        torch.default_generator.manual_seed(1)  # the same draws in every run
        state, total = self.start(), torch.zeros(())
        last = self.T - 1 if only is None else only
        for t in range(last + 1):
            if cut is not None and t == last - cut + 1:
                state = {name: _detached(part) for name, part in state.items()}
            if carry is not None:
                state = carry(state, name="loop")
            state, read = self.step(t, state)
            if t == last or (only is None and not self.at_end):
                total = total + (read - self.y[t]).square().mean()
        return total

    def window(self, width: int, parameters: list[Tensor]) -> Tensor:
        """The gradient of a window of so many steps."""
        total = [torch.zeros_like(value) for value in parameters]
        whole = [self.run()] if width == self.T else None
        cut = (self.run(width, t) for t in range(self.T - 1 if self.at_end else 0, self.T))
        for loss in whole or cut:
            if loss.requires_grad:
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                total = [a if g is None else a + g for a, g in zip(total, found, strict=True)]
        return torch.cat([_real(value).flatten() for value in total])

    def adjoint_norms(self) -> list[float]:
        """Mean over samples of |dL/ds_t| by step, from a run in which the state at t is a leaf."""
        norms = []
        for t in range(self.T):
            leaves: list[Tensor] = []
            with _leaf_at(self, t, leaves) as carry:
                loss = self.run(carry=carry)
            found = torch.autograd.grad(loss, leaves, allow_unused=True) if leaves else ()
            rows = [_real(g).reshape(B, -1) for g in found if g is not None]
            size = torch.cat(rows, 1).norm(dim=1).mean() if rows else torch.zeros(())
            norms.append(float(size))
        return norms


def _detached(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(map(_detached, part))
    return part.detach() if isinstance(part, Tensor) else part


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value) if value.is_complex() else value


@contextmanager
def _leaf_at(program: Program, t: int, leaves: list[Tensor]) -> Iterator[Any]:
    """Put leaves in the place of the state that the t-th call returns; for programs with `carry`, gets."""

    def leaf(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: leaf(part) for key, part in value.items()}
        if isinstance(value, tuple):
            return tuple(map(leaf, value))
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        same = [known for known, old in made if old is value]
        if not same:
            made.append((value.detach().clone().requires_grad_(), value))
            leaves.append(made[-1][0])
            same = [made[-1][0]]
        return same[0]

    made: list[tuple[Tensor, Tensor]] = []
    if program.watched is None:
        calls = count()
        yield lambda state, name: leaf(state) if next(calls) == t else state
        return
    handles = []
    for name in program.watched.split("+"):
        own = count()
        handles.append(
            program.get_submodule(name).register_forward_hook(
                lambda _module, _given, output, own=own: leaf(output) if next(own) == t else None
            )
        )
    yield None
    for handle in handles:
        handle.remove()


PROGRAMS: dict[str, Callable[[], Program]] = {}


def listed(program: type[Program]) -> type[Program]:
    """Enter a program in the list."""
    PROGRAMS[program.__name__] = program
    return program


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
