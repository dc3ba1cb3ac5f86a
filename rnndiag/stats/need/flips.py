"""Sign-flip tests: without an effect, the gain of a sequence is symmetric around 0."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def signs(count: int, flips: int, seed: int) -> Array:
    """(flips, count) of -1 and 1."""
    drawn = np.random.default_rng(seed).integers(0, 2, (flips, count))
    return np.asarray(drawn, dtype=np.float64) * 2 - 1


def p_of_sum(values: Array, flips: int, seed: int) -> float:
    """One-sided p that the sum is above 0; 1 where all values are 0."""
    if not np.any(values):
        return 1.0
    drawn = signs(len(values), flips, seed) @ values
    return float((1 + np.sum(drawn >= values.sum())) / (flips + 1))


def family_wise_p(values: Array, flips: int, seed: int) -> list[float]:
    """One-sided p of each row of (groups, sequences), corrected for the number of groups by the maximum statistic."""
    size = np.sqrt(np.sum(values**2, 1))
    safe = np.where(size > 0, size, 1.0)
    largest = ((signs(values.shape[1], flips, seed) @ values.T) / safe).max(1, initial=-np.inf)
    observed = values.sum(1) / safe
    return [
        float((1 + np.sum(largest >= one)) / (flips + 1)) if s > 0 else 1.0
        for one, s in zip(observed, size, strict=True)
    ]


def mean_with_error(values: Array) -> tuple[float, float]:
    """Mean over sequences and its standard error (infinite for one sequence)."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return float(np.mean(values)), error


def in_blocks(values: Array, block: int) -> Array:
    """Means over blocks of `block` consecutive sequences (last axis): the units of the tests if sequences overlap."""
    if block <= 1:
        return values
    starts = np.arange(0, values.shape[-1], block)
    counts = np.diff([*starts, values.shape[-1]])
    return np.asarray(np.add.reduceat(values, starts, -1) / counts)
