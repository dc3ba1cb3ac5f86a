"""The GRU of the lectures: reset is applied to h before the matrix product, and h_t = (1-z) h_{t-1} + z n (z
swapped).

W_hh holds the blocks r and z; the matrix of n is the extra weight `weight_hn` (H, H), applied within the step.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import linear

from rnndiag.engine.cells.cell import Cell, State
from rnndiag.engine.cells.registry import register_cell


def activations(
    a_ih: Tensor, a_hh: Tensor, state: State, *, weight_hn: Tensor
) -> Mapping[str, Tensor]:
    """Values of the three gates, each (N, H)."""
    r_ih, z_ih, n_ih = a_ih.chunk(3, -1)
    r_hh, z_hh = a_hh.chunk(2, -1)
    r = (r_ih + r_hh).sigmoid()
    n = (n_ih + linear(r * state[0], weight_hn)).tanh()
    return {"r": r, "z": (z_ih + z_hh).sigmoid(), "n": n}


def pointwise(a_ih: Tensor, a_hh: Tensor, state: State, *, weight_hn: Tensor) -> State:
    """The new h."""
    gate = activations(a_ih, a_hh, state, weight_hn=weight_hn)
    return (state[0] + gate["z"] * (gate["n"] - state[0]),)


LECTURE_GRU = register_cell(
    Cell(
        name="lecture_gru",
        parts=("h",),
        gates=("r", "z", "n"),
        recurrent_gates=("r", "z"),
        pointwise=pointwise,
        extras=("weight_hn",),
        activations=activations,
        sigmoid_gates=("r", "z"),
        carry=lambda gate: 1 - gate["z"],
    )
)
