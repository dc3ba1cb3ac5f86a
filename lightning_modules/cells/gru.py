"""torch's GRU: the reset gate acts after the matrix, h_t = (1-z) n + z h_{t-1}."""

from torch import nn

from lightning_modules.cells.cell import CELLS, CellEntry

CELLS.add("gru", CellEntry("GRU, torch's", gates=("r", "z", "n"), keeps=("z", 1.0), kernel=nn.GRU))
