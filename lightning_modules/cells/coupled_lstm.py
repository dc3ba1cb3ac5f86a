"""LSTM with coupled gates, i = 1 - f: c_t = f c_{t-1} + (1-f) g; h_t = o tanh c_t."""

from __future__ import annotations

from torch import Tensor

from lightning_modules.cells.cell import CELLS, CellEntry, GatedStep


class CoupledLSTMStep(GatedStep):
    """One step."""

    rnndiag_cell = "coupled_lstm"
    parts = ("h", "c")

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, gates=3)

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The new (h, c)."""
        a_ih, a_hh = self.pre_activations(inputs, state[0])
        f, g, o = (a_ih + a_hh).chunk(3, -1)
        c = g.tanh() + f.sigmoid() * (state[1] - g.tanh())
        return o.sigmoid() * c.tanh(), c


CELLS.add(
    "coupled_lstm",
    CellEntry(
        "LSTM, coupled gates",
        gates=("f", "g", "o"),
        keeps=("f", 1.0),
        parts=("h", "c"),
        step=CoupledLSTMStep,
    ),
)
