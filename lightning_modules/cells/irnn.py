"""IRNN: Elman's cell with relu, started from W_hh = 1 and zero biases, so that at first the state is a plain sum."""

from lightning_modules.cells.cell import CELLS, CellEntry
from lightning_modules.cells.elman_relu import RELU_RNN

CELLS.add(
    "irnn",
    CellEntry(
        "Elman, relu, identity start",
        gates=("h",),
        kernel=RELU_RNN,
        initialisation={"hidden": "identity", "bias": "zero"},
    ),
)
