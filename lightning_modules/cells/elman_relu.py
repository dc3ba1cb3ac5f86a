"""Elman's cell with relu: its factors are 1 or 0, so it need not vanish, can die and can explode."""

from functools import partial

from torch import nn

from lightning_modules.cells.cell import CELLS, CellEntry

RELU_RNN = partial(nn.RNN, nonlinearity="relu")

CELLS.add("elman_relu", CellEntry("Elman, relu", gates=("h",), kernel=RELU_RNN))
