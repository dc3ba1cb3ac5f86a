"""The registry of cells, and which module classes compute which cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from torch import nn

from rnndiag.engine.cells.cell import Cell
from rnndiag.errors import BadArgument

CELLS: dict[str, Cell] = {}
KNOWN_RECURRENCES = "nn.RNN, nn.LSTM, nn.GRU, their cells and registered cells"
"""The modules that are recorded without being named, for messages."""


@dataclass(frozen=True)
class Binding:
    """A module class that computes one step of a registered cell."""

    cell: Cell
    weights: Mapping[str, str] = field(default_factory=dict)
    """Weight key of the cell -> name of the module's parameter, for those that differ."""


_BINDINGS: dict[type[nn.Module], Binding] = {}


def register_cell(
    cell: Cell,
    module: type[nn.Module] | None = None,
    weights: Mapping[str, str] | None = None,
) -> Cell:
    """Register a cell under its name.

    Args:
        cell: The cell.
        module: A module class of which `module(input, state)` does one step of the cell. Its instances are captured as
            this cell.
        weights: Weight key of the cell -> name of the module's parameter, where the two differ.

    Returns:
        The cell.

    Raises:
        BadArgument: Another cell has this name.

    Example:
        >>> leaky = rnndiag.Cell(
        ...     "leaky", parts=("h",), gates=("h",), elementwise=True,
        ...     pointwise=lambda a_ih, a_hh, state: ((state[0] + (a_ih + a_hh).tanh()) / 2,),
        ... )
        >>> rnndiag.register_cell(leaky).name
        'leaky'
    """
    known = CELLS.setdefault(cell.name, cell)
    if known is not cell:
        raise BadArgument(
            f"A cell called {cell.name!r} is registered already.", "Give the new cell another name."
        )
    if module is not None:
        _BINDINGS[module] = Binding(cell, dict(weights or {}))
    return cell


def find_cell(name: str) -> Cell:
    """The cell of that name."""
    try:
        return CELLS[name]
    except KeyError:
        near = get_close_matches(name, CELLS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(sorted(CELLS))}."
        raise BadArgument(f"There is no cell called {name!r}.", hint) from None


def binding_of(module: nn.Module) -> Binding | None:
    """The binding of a module's class to a cell, by `register_cell(..., module=...)` or a class attribute
    `rnndiag_cell = "name"`.

    None: the module itself is run as a cell.
    """
    for kind in type(module).__mro__:
        if kind in _BINDINGS:
            return _BINDINGS[kind]
    name = getattr(type(module), "rnndiag_cell", None)
    return None if name is None else Binding(find_cell(name))


def cell_of_kernel(kernel: str) -> Cell | None:
    """The cell that a kernel of torch computes, over a sequence or one step."""
    for cell in CELLS.values():
        if kernel in cell.kernels or kernel in cell.step_kernels:
            return cell
    return None
