"""Indices of rows: the step of a sequence that each row of a set is at."""

from __future__ import annotations

from torch import Tensor

Where = slice | Tensor
"""Time steps of all sequences, a slice or (K,); or flat indices t * B + n, (K, N), if columns differ."""


def take(values: Tensor, where: Where) -> Tensor:
    """Rows (K, N, ...) of values (T, B, ...)."""
    if isinstance(where, slice):
        return values[where]
    if where.dim() == 1:
        return values.index_select(0, where)
    rows = values.flatten(0, 1).index_select(0, where.flatten())
    return rows.view(*where.shape, *values.shape[2:])


def count(where: Where) -> int:
    """Number of rows, K."""
    if isinstance(where, slice):
        return len(range(where.start, where.stop, where.step or 1))
    return len(where)


def earlier(where: Where, first: int, sequences: int) -> Where:
    """The indices one time step earlier of the rows first, first+1, ...; `where` must not be a strided slice."""
    if isinstance(where, slice):
        return slice(where.start + first - 1, where.stop - 1)
    if where.dim() == 1:
        return where[first:] - 1
    return (where[first:] - sequences).clamp(min=0)


def every(T: int) -> Where:
    """All T time steps."""
    return slice(0, T)


def piece(where: Where, start: int, stop: int) -> Where:
    """The indices of the rows start .. stop-1 among the rows of `where`."""
    if not isinstance(where, slice):
        return where[start:stop]
    step = where.step or 1
    return slice(where.start + start * step, min(where.start + stop * step, where.stop), where.step)
