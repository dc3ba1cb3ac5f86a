"""Peephole LSTM: gates i and f depend on c_{t-1}, gate o on c_t, by a vector (H,) or a matrix (H, H) each."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import linear

from rnndiag.engine.cells.cell import Cell, State, summed
from rnndiag.engine.cells.registry import register_cell


def _peephole_term(c: Tensor, peephole: Tensor) -> Tensor:
    return c * peephole if peephole.dim() <= 1 else linear(c, peephole)


def _gates_and_c(
    a_ih: Tensor,
    a_hh: Tensor,
    state: State,
    peephole_i: Tensor,
    peephole_f: Tensor,
    peephole_o: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    i, f, g, o = summed(a_ih, a_hh).chunk(4, -1)
    before = state[1]
    gate = {
        "i": (i + _peephole_term(before, peephole_i)).sigmoid(),
        "f": (f + _peephole_term(before, peephole_f)).sigmoid(),
        "g": g.tanh(),
    }
    c = gate["f"] * before + gate["i"] * gate["g"]
    gate["o"] = (o + _peephole_term(c, peephole_o)).sigmoid()
    return gate, c


def activations(
    a_ih: Tensor, a_hh: Tensor, state: State, **peepholes: Tensor
) -> Mapping[str, Tensor]:
    """Values of the four gates, each (N, H)."""
    return _gates_and_c(a_ih, a_hh, state, **peepholes)[0]


def pointwise(a_ih: Tensor, a_hh: Tensor, state: State, **peepholes: Tensor) -> State:
    """The new (h, c)."""
    gate, c = _gates_and_c(a_ih, a_hh, state, **peepholes)
    return gate["o"] * c.tanh(), c


PEEPHOLE_LSTM = register_cell(
    Cell(
        name="peephole_lstm",
        parts=("h", "c"),
        gates=("i", "f", "g", "o"),
        pointwise=pointwise,
        extras=("peephole_i", "peephole_f", "peephole_o"),
        elementwise=True,
        additive=True,
        activations=activations,
        sigmoid_gates=("i", "f", "o"),
        carry=lambda gate: gate["f"],
    )
)
