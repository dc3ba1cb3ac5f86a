"""torch's GRU: n = tanh(W_in x + b_in + r (W_hn h + b_hn)); h_t = (1-z) n + z h_{t-1}."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rnndiag.engine.cells.cell import Cell, State
from rnndiag.engine.cells.registry import register_cell


def activations(a_ih: Tensor, a_hh: Tensor, state: State) -> Mapping[str, Tensor]:
    """Values of the three gates, each (N, H). In n, a_hh is multiplied by r, so a_ih and a_hh stay separate."""
    r_ih, z_ih, n_ih = a_ih.chunk(3, -1)
    r_hh, z_hh, n_hh = a_hh.chunk(3, -1)
    r = (r_ih + r_hh).sigmoid()
    return {"r": r, "z": (z_ih + z_hh).sigmoid(), "n": (n_ih + r * n_hh).tanh()}


def pointwise(a_ih: Tensor, a_hh: Tensor, state: State) -> State:
    """The new h."""
    gate = activations(a_ih, a_hh, state)
    return (gate["n"] + gate["z"] * (state[0] - gate["n"]),)


GRU = register_cell(
    Cell(
        name="gru",
        parts=("h",),
        gates=("r", "z", "n"),
        pointwise=pointwise,
        elementwise=True,
        activations=activations,
        sigmoid_gates=("r", "z"),
        carry=lambda gate: gate["z"],
        kernels=("gru",),
        step_kernels=("gru_cell",),
    )
)
