"""Peephole LSTM: the gates i and f see c_{t-1}, the gate o sees c_t."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.cells.cell import CELLS, CellEntry, GatedStep


class PeepholeLSTMStep(GatedStep):
    """One step. Each peephole is a vector (H,): a unit's gates look at that unit's cell."""

    rnndiag_cell = "peephole_lstm"
    parts = ("h", "c")

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, gates=4)

    def add_weights(self, hidden: int) -> None:
        """One vector a peephole."""
        self.peephole_i = nn.Parameter(torch.empty(hidden))
        self.peephole_f = nn.Parameter(torch.empty(hidden))
        self.peephole_o = nn.Parameter(torch.empty(hidden))

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The new (h, c)."""
        h, before = state
        a_ih, a_hh = self.pre_activations(inputs, h)
        i, f, g, o = (a_ih + a_hh).chunk(4, -1)
        i = (i + self.peephole_i * before).sigmoid()
        f = (f + self.peephole_f * before).sigmoid()
        c = f * before + i * g.tanh()
        return (o + self.peephole_o * c).sigmoid() * c.tanh(), c


CELLS.add(
    "peephole_lstm",
    CellEntry(
        "LSTM, peepholes",
        gates=("i", "f", "g", "o"),
        keeps=("f", 1.0),
        parts=("h", "c"),
        step=PeepholeLSTMStep,
    ),
)
