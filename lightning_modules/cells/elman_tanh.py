"""Elman's cell: h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)."""

from torch import nn

from lightning_modules.cells.cell import CELLS, CellEntry

CELLS.add("elman_tanh", CellEntry("Elman, tanh", gates=("h",), kernel=nn.RNN))
