"""The linear recurrence h_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh, whose adjoint is a power of W_hh^T."""

from __future__ import annotations

from torch import Tensor

from lightning_modules.cells.cell import CELLS, CellEntry, GatedStep


class LinearStep(GatedStep):
    """One step."""

    rnndiag_cell = "linear"

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, gates=1)

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The new (h,)."""
        a_ih, a_hh = self.pre_activations(inputs, state[0])
        return (a_ih + a_hh,)


CELLS.add("linear", CellEntry("linear recurrence", gates=("h",), step=LinearStep))
