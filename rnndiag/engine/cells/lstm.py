"""torch's LSTM: gates i, f, g, o from one pre-activation; c_t = f c_{t-1} + i g; h_t = o tanh c_t."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rnndiag.engine.cells.cell import Cell, State, summed
from rnndiag.engine.cells.nested import Nested
from rnndiag.engine.cells.registry import register_cell


def activations(a_ih: Tensor, a_hh: Tensor, state: State) -> Mapping[str, Tensor]:
    """Values of the four gates, each (N, H)."""
    i, f, g, o = summed(a_ih, a_hh).chunk(4, -1)
    # tanh of a strided view takes three times as long on a CPU
    return {"i": i.sigmoid(), "f": f.sigmoid(), "g": g.contiguous().tanh(), "o": o.sigmoid()}


def pointwise(a_ih: Tensor, a_hh: Tensor, state: State) -> State:
    """(h, c) before the projection of h."""
    gate = activations(a_ih, a_hh, state)
    c = gate["f"] * state[1] + gate["i"] * gate["g"]
    return gate["o"] * c.tanh(), c


def recover(gate: Mapping[str, Tensor], initial: State) -> State:
    """c of all steps (T, N, H) from the gates of all steps; only the recurrence in c is sequential."""
    c, before = gate["i"] * gate["g"], initial[1]
    for now, forget in zip(c.unbind(0), gate["f"].unbind(0), strict=True):
        before = now.addcmul_(forget, before)
    return (c,)


def nested(gate: Mapping[str, Tensor], state: State) -> Nested:
    """Closed-form derivatives: h by o and c; c by i, f, g and c_{t-1}."""
    before = state[1]
    i, f, g, o = gate.values()
    c = torch.addcmul(i * g, f, before)
    tanh_c = c.tanh()
    h = o * tanh_c
    c_by_gate = c.new_empty(*c.shape[:-1], 3, c.shape[-1])
    torch.mul(i - i * i, g, out=c_by_gate[..., 0, :])
    torch.mul(f - f * f, before, out=c_by_gate[..., 1, :])
    torch.addcmul(i, i * g, g, value=-1, out=c_by_gate[..., 2, :])
    return Nested(
        out=(h, c),
        within=torch.addcmul(o, h, tanh_c, value=-1),
        gates=(slice(3, 4), slice(0, 3)),
        by_gate=(torch.addcmul(h, h, o, value=-1).unsqueeze(-2), c_by_gate),
        carried=f,
    )


LSTM = register_cell(
    Cell(
        name="lstm",
        parts=("h", "c"),
        gates=("i", "f", "g", "o"),
        pointwise=pointwise,
        elementwise=True,
        additive=True,
        recover=recover,
        nested=nested,
        activations=activations,
        sigmoid_gates=("i", "f", "o"),
        carry=lambda gate: gate["f"],
        kernels=("lstm",),
        step_kernels=("lstm_cell",),
    )
)
