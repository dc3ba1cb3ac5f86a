"""Converts an engine result's `rows()` and `coordinates()` to measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from rnndiag.recorder.measures.pooling import array
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import QUANTITIES


def measurements(
    rows: Mapping[str, Tensor], labels: Mapping[str, Sequence[str]], layer: str
) -> Iterator[Measurement]:
    """One measurement per row, with the labels of its dims."""
    for name, values in rows.items():
        found = array(values)
        dims = dict(zip(QUANTITIES[name].dims, found.shape, strict=True))
        own = {dim: tuple(labels[dim])[:length] for dim, length in dims.items() if dim in labels}
        yield Measurement.of(name, found, layer, own)
