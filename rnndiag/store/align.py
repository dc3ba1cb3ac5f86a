"""Measurements of several recordings, or ranks, as one array: aligned by their dims, padded with NaN, never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from rnndiag.errors import RunUnreadable
from rnndiag.store.measurement import Measurement

_PADDED_BYTES, _PADDING_FACTOR = 128 << 20, 32
"""Padded values may take up to _PADDED_BYTES, or _PADDING_FACTOR times the bytes stored, whichever is more."""


@dataclass(frozen=True)
class Aligned:
    """Several measurements as one array: the first axis of `values` counts the measurements.

    `lengths[dim]` (n,) is the length of a dim in each measurement; `valid` marks the entries that are not padding, None
    where none is padding.
    """

    values: np.ndarray
    dims: tuple[str, ...]
    coordinates: dict[str, tuple[str, ...]]
    lengths: dict[str, np.ndarray]
    valid: np.ndarray | None


def align(measurements: Sequence[Measurement]) -> Aligned:
    """Stack measurements of one quantity. Labelled dims are matched by label, the others from 0 on.

    Where something must be padded, integers and bools become float64.
    """
    first = measurements[0]
    dims = first.dims
    for m in measurements:
        if m.dims != dims:
            raise RunUnreadable(
                f"{first.name} of {first.layer} has dims {dims} in one recording and {m.dims} in another.",
                "They come from different versions of rnndiag: select the steps of one of them.",
            )
    if all(
        m.values.shape == first.values.shape and m.coordinates == first.coordinates
        for m in measurements
    ):
        lengths = {
            dim: np.full(len(measurements), size, np.int64)
            for dim, size in zip(dims, first.values.shape, strict=True)
        }
        return Aligned(_stacked(measurements), dims, dict(first.coordinates), lengths, None)
    sizes = np.array([m.values.shape for m in measurements], np.int64).reshape(
        len(measurements), len(dims)
    )
    lengths = {dim: sizes[:, axis] for axis, dim in enumerate(dims)}
    unions = {dim: _union(measurements, dim) for dim in dims}
    coordinates = {dim: labels for dim, labels in unions.items() if labels is not None}
    if _same(measurements, sizes, coordinates):
        return Aligned(_stacked(measurements), dims, coordinates, lengths, None)
    return _padded(measurements, dims, coordinates, lengths, _kind(measurements))


def _kind(measurements: Sequence[Measurement]) -> np.dtype:
    return np.result_type(*{m.values.dtype for m in measurements})


def _stacked(measurements: Sequence[Measurement]) -> np.ndarray:
    """The values of measurements of one shape, one below the other."""
    values = np.empty((len(measurements), *measurements[0].values.shape), _kind(measurements))
    for row, m in enumerate(measurements):
        values[row] = m.values
    return values


def _same(
    measurements: Sequence[Measurement], sizes: np.ndarray, coordinates: dict[str, tuple[str, ...]]
) -> bool:
    if (sizes != sizes[0]).any():
        return False
    return all(
        m.coordinates.get(dim) == given for dim, given in coordinates.items() for m in measurements
    )


def _union(measurements: Sequence[Measurement], dim: str) -> tuple[str, ...] | None:
    """All labels of a dim: sorted where they are numbers, else in order of appearance; None if a measurement has none.

    Labels that repeat (the last letters of a text) cannot be matched: they are kept where all have the same.
    """
    first = measurements[0].coordinates.get(dim)
    if all(m.coordinates.get(dim) == first for m in measurements):
        return first
    seen: dict[str, None] = {}
    last: tuple[str, ...] | None = None
    for m in measurements:
        labels = m.coordinates.get(dim)
        if labels is None or (labels is not last and len(set(labels)) != len(labels)):
            return None
        if labels is not last:
            seen.update(dict.fromkeys(labels))
            last = labels
    return _rising(tuple(seen))


def _rising(labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels sorted as numbers, so that windows measured in one recording only lie in order; unchanged if not
    numbers."""
    try:
        return tuple(sorted(labels, key=float))
    except ValueError:
        return labels


def _refuse_mostly_padding(
    measurements: Sequence[Measurement], shape: tuple[int, ...], itemsize: int
) -> None:
    """Raise RunUnreadable if aligning arrays of unlike shapes would take far more memory than the arrays themselves."""
    needed = len(measurements) * prod(shape) * itemsize
    held = sum(m.values.nbytes for m in measurements)
    if needed > max(_PADDED_BYTES, _PADDING_FACTOR * held):
        first = measurements[0]
        raise RunUnreadable(
            f"{first.name} of {first.layer} has shapes so unlike that side by side its {held} bytes "
            f"would take {needed}.",
            "Select fewer steps, or read the recordings one by one.",
        )


def _padded(
    measurements: Sequence[Measurement],
    dims: tuple[str, ...],
    coordinates: dict[str, tuple[str, ...]],
    lengths: dict[str, np.ndarray],
    kind: np.dtype,
) -> Aligned:
    shape = tuple(
        len(coordinates[dim]) if dim in coordinates else int(lengths[dim].max()) for dim in dims
    )
    padded_kind = kind if kind.kind in "fc" else np.dtype(np.float64)
    _refuse_mostly_padding(measurements, shape, padded_kind.itemsize)
    values = np.full((len(measurements), *shape), np.nan, padded_kind)
    valid = np.zeros(values.shape, bool)
    for row, m in enumerate(measurements):
        places = []
        for dim, size in zip(dims, m.values.shape, strict=True):
            union = coordinates.get(dim)
            labels = m.coordinates.get(dim)
            if labels is None or union is None or labels == union:
                places.append(np.arange(size))
            else:
                places.append(np.array([union.index(label) for label in labels], np.int64))
        where: tuple[Any, ...] = (row, *np.ix_(*places)) if places else (row,)
        values[where] = m.values
        valid[where] = True
    return Aligned(values, dims, coordinates, lengths, valid)
