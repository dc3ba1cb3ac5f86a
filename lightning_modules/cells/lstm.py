"""torch's LSTM: gates i, f, g, o; c_t = f c_{t-1} + i g; h_t = o tanh c_t."""

from torch import nn

from lightning_modules.cells.cell import CELLS, CellEntry

CELLS.add(
    "lstm",
    CellEntry(
        "LSTM", gates=("i", "f", "g", "o"), keeps=("f", 1.0), parts=("h", "c"), kernel=nn.LSTM
    ),
)
