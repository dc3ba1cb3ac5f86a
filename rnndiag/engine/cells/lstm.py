"""torch's LSTM: gates i, f, g, o from one pre-activation; c_t = f c_{t-1} + i g; h_t = o tanh c_t."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rnndiag.engine.cells.cell import Cell, State
from rnndiag.engine.cells.registry import register_cell


def activations(a_ih: Tensor, a_hh: Tensor, state: State) -> Mapping[str, Tensor]:
    """Values of the four gates, each (N, H)."""
    i, f, g, o = (a_ih + a_hh).chunk(4, -1)
    return {"i": i.sigmoid(), "f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}


def pointwise(a_ih: Tensor, a_hh: Tensor, state: State) -> State:
    """(h, c) before the projection of h."""
    gate = activations(a_ih, a_hh, state)
    c = gate["f"] * state[1] + gate["i"] * gate["g"]
    return gate["o"] * c.tanh(), c


def recover(a_ih: Tensor, a_hh: Tensor, initial: State) -> State:
    """c of all steps from the gates of all steps: the one part that must go step by step. (T, N, H)."""
    gate = activations(a_ih, a_hh, initial)
    c = gate["i"] * gate["g"]
    before = initial[1]
    for now, forget in zip(c.unbind(0), gate["f"].unbind(0), strict=True):
        before = now.addcmul_(forget, before)
    return (c,)


LSTM = register_cell(
    Cell(
        name="lstm",
        parts=("h", "c"),
        gates=("i", "f", "g", "o"),
        pointwise=pointwise,
        elementwise=True,
        additive=True,
        recover=recover,
        activations=activations,
        sigmoid_gates=("i", "f", "o"),
        carry=lambda gate: gate["f"],
        kernels=("lstm",),
        step_kernels=("lstm_cell",),
    )
)
