"""Slow, obvious references: every layer unrolled step by step in Python, gradients from torch.autograd alone.

Written from the definitions and sharing no code with rnndiag. Each step of each layer uses its own copy of the weights,
so the gradient of a copy is that step's contribution; each state part passes through a relay, so the gradient of the
relay is the adjoint of that part with the other parts held fixed. Everything is in processing order, as in a LayerRun.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]
Weights = Mapping[str, Tensor]


def _affine(x: Tensor, weights: Weights, key: str, gate: int, gates: int) -> Tensor:
    """Rows of one gate of W x + b, b absent where the layer has none."""
    units = weights[f"weight_{key}"].shape[0] // gates
    rows = slice(gate * units, (gate + 1) * units)
    out = x @ weights[f"weight_{key}"][rows].T
    bias = weights.get(f"bias_{key}")
    return out if bias is None else out + bias[rows]


def _both(x: Tensor, h: Tensor, weights: Weights, gate: int, gates: int) -> Tensor:
    return _affine(x, weights, "ih", gate, gates) + _affine(h, weights, "hh", gate, gates)


def _elman(activation: Callable[[Tensor], Tensor]) -> Callable[[Weights, Tensor, State], State]:
    def step(weights: Weights, x: Tensor, state: State) -> State:
        return (activation(_both(x, state[0], weights, 0, 1)),)

    return step


def _lstm(weights: Weights, x: Tensor, state: State) -> State:
    h, c = state
    i = torch.sigmoid(_both(x, h, weights, 0, 4))
    f = torch.sigmoid(_both(x, h, weights, 1, 4))
    g = torch.tanh(_both(x, h, weights, 2, 4))
    o = torch.sigmoid(_both(x, h, weights, 3, 4))
    c = f * c + i * g
    h = o * torch.tanh(c)
    return (h @ weights["weight_hr"].T if "weight_hr" in weights else h), c


def _gru(weights: Weights, x: Tensor, state: State) -> State:
    (h,) = state
    r = torch.sigmoid(_both(x, h, weights, 0, 3))
    z = torch.sigmoid(_both(x, h, weights, 1, 3))
    n = torch.tanh(_affine(x, weights, "ih", 2, 3) + r * _affine(h, weights, "hh", 2, 3))
    return ((1 - z) * n + z * h,)


def _lecture_gru(weights: Weights, x: Tensor, state: State) -> State:
    (h,) = state
    units = h.shape[-1]
    r = torch.sigmoid(_affine(x, weights, "ih", 0, 3) + _affine(h, weights, "hh", 0, 2))
    z = torch.sigmoid(_affine(x, weights, "ih", 1, 3) + _affine(h, weights, "hh", 1, 2))
    n = torch.tanh(_affine(x, weights, "ih", 2, 3) + (r * h) @ weights["weight_hn"].T)
    assert n.shape[-1] == units
    return ((1 - z) * h + z * n,)


def _peek(c: Tensor, peephole: Tensor) -> Tensor:
    return c @ (torch.diag(peephole) if peephole.dim() == 1 else peephole).T


def _peephole_lstm(weights: Weights, x: Tensor, state: State) -> State:
    h, c = state
    i = torch.sigmoid(_both(x, h, weights, 0, 4) + _peek(c, weights["peephole_i"]))
    f = torch.sigmoid(_both(x, h, weights, 1, 4) + _peek(c, weights["peephole_f"]))
    g = torch.tanh(_both(x, h, weights, 2, 4))
    c = f * c + i * g
    o = torch.sigmoid(_both(x, h, weights, 3, 4) + _peek(c, weights["peephole_o"]))
    return o * torch.tanh(c), c


def _coupled_lstm(weights: Weights, x: Tensor, state: State) -> State:
    h, c = state
    f = torch.sigmoid(_both(x, h, weights, 0, 3))
    g = torch.tanh(_both(x, h, weights, 1, 3))
    o = torch.sigmoid(_both(x, h, weights, 2, 3))
    c = f * c + (1 - f) * g
    return o * torch.tanh(c), c


STEPS: dict[str, Callable[[Weights, Tensor, State], State]] = {
    "elman_tanh": _elman(torch.tanh),
    "elman_relu": _elman(torch.relu),
    "linear": _elman(lambda a: a),
    "lstm": _lstm,
    "gru": _gru,
    "lecture_gru": _lecture_gru,
    "peephole_lstm": _peephole_lstm,
    "coupled_lstm": _coupled_lstm,
}
GATES = {
    "elman_tanh": (1, 1),
    "elman_relu": (1, 1),
    "linear": (1, 1),
    "lstm": (4, 4),
    "gru": (3, 3),
    "lecture_gru": (3, 2),
    "peephole_lstm": (4, 4),
    "coupled_lstm": (3, 3),
}
"""Blocks of W_ih and of W_hh."""

TWO_PARTS = ("lstm", "peephole_lstm", "coupled_lstm")


def draw_weights(
    cell: str,
    inputs: int,
    units: int,
    *,
    projection: int = 0,
    bias: bool = True,
    matrix_peepholes: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random float64 weights of one layer of a cell."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw) / shape[-1] ** 0.5

    ih, hh = GATES[cell]
    weights = {
        "weight_ih": normal(ih * units, inputs),
        "weight_hh": normal(hh * units, projection or units),
    }
    if bias:
        weights |= {"bias_ih": normal(ih * units), "bias_hh": normal(hh * units)}
    if projection:
        weights["weight_hr"] = normal(projection, units)
    if cell == "lecture_gru":
        weights["weight_hn"] = normal(units, units)
    if cell == "peephole_lstm":
        shape = (units, units) if matrix_peepholes else (units,)
        weights |= {f"peephole_{gate}": normal(*shape) for gate in "ifo"}
    return weights


def draw_state(cell: str, batch: int, units: int, projection: int = 0, seed: int = 1) -> State:
    """A random float64 initial state."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [projection or units] + [units] * (cell in TWO_PARTS)
    return tuple(torch.randn(batch, s, dtype=torch.float64, generator=draw) for s in sizes)


@dataclass
class Tape:
    """One unrolled layer and direction: what autograd will have put where after the backward pass."""

    name: str
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    """Per step: the step's own copy of every weight."""
    relays: list[State] = field(default_factory=list)
    """Per step: the state as all its consumers see it, part by part, (B, S_p)."""
    outputs: list[Tensor] = field(default_factory=list)
    """Per step: the output y_t as everything outside the layer sees it."""
    initial: State = ()
    inputs: list[Tensor] = field(default_factory=list)

    def states(self) -> State:
        """s_t, (T, B, S_p) a part."""
        return tuple(torch.stack(part).detach() for part in zip(*self.relays, strict=True))

    def adjoints(self) -> State:
        """δ_t, (T, B, S_p) a part."""
        return tuple(
            torch.stack([_grad(value) for value in part]) for part in zip(*self.relays, strict=True)
        )

    def direct(self) -> Tensor:
        """∂L/∂y_t, (T, B, S_h): e_t without the gradient of the returned final state."""
        return torch.stack([_grad(value) for value in self.outputs])

    def contributions(self, key: str) -> Tensor:
        """g_t of one weight, (T, *shape)."""
        return torch.stack([_grad(weights[key]) for weights in self.weights])


def _grad(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


def _relay(value: Tensor) -> Tensor:
    """The same value as a node of its own, whose gradient is kept."""
    value = value * 1 if value.requires_grad else value.detach().clone().requires_grad_()
    value.retain_grad()
    return value


def unroll(
    cell: str | Callable[[Weights, Tensor, State], State],
    weights: Weights,
    inputs: Tensor,
    initial: State,
    lengths: Sequence[int] | None = None,
    name: str = "layer",
) -> tuple[Tensor, State, Tape]:
    """One layer in one direction, in processing order: outputs (T, B, S_h), final state, and its tape.

    A step past a sequence's length keeps the state and gives a zero output.
    """
    step = STEPS[cell] if isinstance(cell, str) else cell
    tape, state = Tape(name), tuple(_relay(part) for part in initial)
    tape.initial = state
    for t, x in enumerate(inputs):
        copies = {key: _relay(value) for key, value in weights.items()}
        new = step(copies, x, state)
        if lengths is not None:
            alive = torch.tensor([[t < n] for n in lengths])
            new = tuple(torch.where(alive, a, b) for a, b in zip(new, state, strict=True))
        state = tuple(_relay(part) for part in new)
        output = _relay(state[0])
        tape.weights.append(copies)
        tape.relays.append(state)
        tape.outputs.append(output)
        tape.inputs.append(x)
    outputs = torch.stack(tape.outputs)
    if lengths is not None:
        outputs = outputs * mask(lengths, len(inputs))[..., None]
    return outputs, state, tape


def mask(lengths: Sequence[int], steps: int) -> Tensor:
    """(T, B) of ones where the sequence has that step."""
    return torch.tensor(
        [[float(t < n) for n in lengths] for t in range(steps)], dtype=torch.float64
    )


def flip(values: Tensor, lengths: Sequence[int] | None) -> Tensor:
    """(T, B, ...) turned around in time, each sequence within its own length."""
    if lengths is None:
        return values.flip(0)
    columns = [torch.cat([values[:n, b].flip(0), values[n:, b]]) for b, n in enumerate(lengths)]
    return torch.stack(columns, 1)


CELL_OF_MODE = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "elman_tanh", "RNN_RELU": "elman_relu"}


def unroll_module(
    module: nn.RNNBase,
    inputs: Tensor,
    initial: State | None = None,
    lengths: Sequence[int] | None = None,
    masks: Sequence[Tensor] = (),
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, State, dict[str, Tape]]:
    """torch's recurrent module by hand, in time-major layout: inputs (T, B, I), initial parts (layers*dirs, B, S_p).

    masks: the dropout mask between layer l and l+1, already divided by the keep probability. Returns the outputs
    (T, B, dirs*S_h), the final state like torch's (h_n[, c_n]) and the tapes by name (l0, l0.reverse, ...).
    """
    named = dict(module.named_parameters()) if parameters is None else parameters
    cell = CELL_OF_MODE[module.mode]
    directions = 2 if module.bidirectional else 1
    batch = inputs.shape[1]
    sizes = [module.proj_size or module.hidden_size] + [module.hidden_size] * (cell == "lstm")
    if initial is None:
        shape = (module.num_layers * directions, batch)
        initial = tuple(inputs.new_zeros(*shape, size) for size in sizes)
    tapes: dict[str, Tape] = {}
    finals: list[State] = []
    below = inputs
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            weights = {
                key.removesuffix(suffix): value
                for key, value in named.items()
                if key.endswith(suffix) and (direction or not key.endswith("_reverse"))
            }
            index = layer * directions + direction
            first = tuple(part[index] for part in initial)
            x = flip(below, lengths) if direction else below
            name = f"l{layer}" + (".reverse" if direction else "")
            out, final, tapes[name] = unroll(cell, weights, x, first, lengths, name)
            outputs.append(flip(out, lengths) if direction else out)
            finals.append(final)
        below = torch.cat(outputs, -1)
        if layer < module.num_layers - 1 and len(masks) > layer:
            below = below * masks[layer]
    return below, tuple(torch.stack(part) for part in zip(*finals, strict=True)), tapes


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, over all entries; 0 where both are zero."""
    off = float((found.double() - expected.double()).norm())
    size = float(expected.double().norm())
    return off if size == 0.0 else off / size
