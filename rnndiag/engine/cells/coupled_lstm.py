"""LSTM with coupled gates, i = 1 - f: c_t = f c_{t-1} + (1-f) g; h_t = o tanh c_t."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rnndiag.engine.cells.cell import Cell, State, summed
from rnndiag.engine.cells.registry import register_cell


def activations(a_ih: Tensor, a_hh: Tensor, state: State) -> Mapping[str, Tensor]:
    """Values of the three gates, each (N, H)."""
    f, g, o = summed(a_ih, a_hh).chunk(3, -1)
    return {"f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}


def pointwise(a_ih: Tensor, a_hh: Tensor, state: State) -> State:
    """The new (h, c)."""
    gate = activations(a_ih, a_hh, state)
    c = gate["g"] + gate["f"] * (state[1] - gate["g"])
    return gate["o"] * c.tanh(), c


COUPLED_LSTM = register_cell(
    Cell(
        name="coupled_lstm",
        parts=("h", "c"),
        gates=("f", "g", "o"),
        pointwise=pointwise,
        elementwise=True,
        additive=True,
        activations=activations,
        sigmoid_gates=("f", "o"),
        carry=lambda gate: gate["f"],
    )
)
