"""Which steps of which sequences a set of rows stands at."""

from __future__ import annotations

from torch import Tensor

Where = slice | Tensor
"""A slice of time steps, all sequences; steps (K,), all sequences; or flat places t*B + n, (K, N), of any of the B."""


def take(values: Tensor, where: Where) -> Tensor:
    """Rows (K, N, ...) of values (T, B, ...)."""
    if isinstance(where, slice):
        return values[where]
    if where.dim() == 1:
        return values.index_select(0, where)
    rows = values.flatten(0, 1).index_select(0, where.flatten())
    return rows.view(*where.shape, *values.shape[2:])


def add_at(values: Tensor, where: Where, rows: Tensor) -> None:
    """values[where] += rows, in place; places may occur twice."""
    if isinstance(where, slice):
        values[where] += rows
    elif where.dim() == 1:
        values.index_add_(0, where, rows)
    else:
        values.flatten(0, 1).index_add_(0, where.flatten(), rows.flatten(0, 1))


def earlier(where: Where, first: int, sequences: int) -> Where:
    """The places one time step before rows first, first+1, ... of so many sequences; `where` is no strided slice."""
    if isinstance(where, slice):
        return slice(where.start + first - 1, where.stop - 1)
    if where.dim() == 1:
        return where[first:] - 1
    return (where[first:] - sequences).clamp(min=0)


def every(count: int) -> Where:
    """All of `count` time steps."""
    return slice(0, count)


def piece(where: Where, start: int, stop: int) -> Where:
    """The places of the rows start .. stop-1 among the rows of `where`."""
    if not isinstance(where, slice):
        return where[start:stop]
    step = where.step or 1
    return slice(where.start + start * step, min(where.start + stop * step, where.stop), where.step)
