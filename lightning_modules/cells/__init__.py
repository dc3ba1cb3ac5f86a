"""Cells: one file each. A cell is torch's fused layer, or one step written here."""

from lightning_modules.cells.cell import CELLS, CellEntry

__all__ = ["CELLS", "CellEntry"]
