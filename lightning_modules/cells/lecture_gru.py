"""The lectures' GRU: reset acts on h before the matrix, and h_t = (1-z) h_{t-1} + z n."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.cells.cell import CELLS, CellEntry, GatedStep


class LectureGRUStep(GatedStep):
    """One step. W_hh holds the blocks r and z; n has a matrix of its own, which sees r h."""

    rnndiag_cell = "lecture_gru"

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, gates=3, recurrent_gates=2)

    def add_weights(self, hidden: int) -> None:
        """W_hn (H, H)."""
        self.weight_hn = nn.Parameter(torch.empty(hidden, hidden))

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The new (h,)."""
        (h,) = state
        a_ih, a_hh = self.pre_activations(inputs, h)
        r_ih, z_ih, n_ih = a_ih.chunk(3, -1)
        r_hh, z_hh = a_hh.chunk(2, -1)
        r = (r_ih + r_hh).sigmoid()
        z = (z_ih + z_hh).sigmoid()
        n = (n_ih + nn.functional.linear(r * h, self.weight_hn)).tanh()
        return (h + z * (n - h),)


CELLS.add(
    "lecture_gru",
    CellEntry("GRU, the lectures'", gates=("r", "z", "n"), keeps=("z", -1.0), step=LectureGRUStep),
)
