"""Recurrent cells, one file each. A new cell is a file here and an import below."""

from rnndiag.engine.cells import (  # noqa: F401  (each registers its cells)
    coupled_lstm,
    elman,
    gru,
    lecture_gru,
    lstm,
    peephole_lstm,
)
from rnndiag.engine.cells.cell import Cell, State, Weights
from rnndiag.engine.cells.module_cell import module_cell
from rnndiag.engine.cells.registry import (
    CELLS,
    KNOWN_RECURRENCES,
    Binding,
    binding_of,
    cell_of_kernel,
    find_cell,
    register_cell,
)

__all__ = [
    "CELLS",
    "KNOWN_RECURRENCES",
    "Binding",
    "Cell",
    "State",
    "Weights",
    "binding_of",
    "cell_of_kernel",
    "find_cell",
    "module_cell",
    "register_cell",
]
