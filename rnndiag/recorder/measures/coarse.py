"""Reduces lag x lag matrices of long sequences to blocks, each with its largest entry."""

from __future__ import annotations

import numpy as np

from rnndiag.recorder.measures.pooling import Array
from rnndiag.store.measurement import Measurement

MOST = 256
"""Most rows and columns of a stored matrix."""


def coarse(name: str, matrix: Array, layer: str) -> Measurement:
    """The matrix, by blocks if it is large; labels are the first step of each block."""
    size = matrix.shape[0]
    block = -(-size // MOST)
    if block == 1:
        return Measurement.of(name, matrix, layer)
    count = -(-size // block)
    padded = np.full((count * block, count * block), -np.inf, matrix.dtype)
    padded[:size, :size] = matrix
    blocks = padded.reshape(count, block, count, block)
    known = np.where(np.isnan(blocks), -np.inf, blocks).max((1, 3))
    unmeasured = np.isnan(blocks).any((1, 3)) & np.isneginf(known)
    labels = tuple(str(i * block) for i in range(count))
    dims = ("output", "source")
    values = np.where(unmeasured, np.nan, known)
    return Measurement.of(name, values, layer, dict.fromkeys(dims, labels))
