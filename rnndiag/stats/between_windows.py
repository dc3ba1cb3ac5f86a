"""What each recording says of windows that others measured and it did not: sampled sweeps do not measure the same ones.

Medians and means over recordings would otherwise be those of whatever recordings happened to look at a window; the
long ones are looked at where the gradient reaches far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rnndiag.store.measurement import Series

NOTHING = 1e-3
"""Behind the last window of a recording there is no more than there, where its bias there is at most this."""


def at_window(values: np.ndarray, windows: np.ndarray, window: float) -> float:
    """The value (D,) at a window: between two windows that were measured on the straight line through them, of their
    logarithms where both are positive; behind the last one what it has there; NaN before the first."""
    known = np.flatnonzero(~np.isnan(values))
    if not known.size or not window >= max(1.0, windows[known[0]]):
        return float("nan")
    return float(_filled(values[known], windows[known], np.array([float(window)]))[0])


def over_windows(series: Series) -> np.ndarray:
    """The values of a series by recording and window (R, D), filled like `at_window`; NaN where a recording says
    nothing of a window: behind its last one, unless next to nothing was left there."""
    values, windows = _of(series)
    if not np.isnan(values).any():
        return values
    found = values.copy()
    for row, given in zip(found, values, strict=True):
        known = np.flatnonzero(~np.isnan(given))
        if known.size:
            end = len(row) if _is_nothing(given[known], NOTHING) else known[-1] + 1
            inside = slice(known[0], end)
            row[inside] = _filled(given[known], windows[known], windows[inside])
    return found


def _of(series: Series) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(series.values, np.float64), series.positions("lag").astype(np.float64)


def _is_nothing(given: np.ndarray, share: float) -> bool:
    return bool(abs(given[-1]) <= share * abs(given[0]))


def _filled(given: np.ndarray, at: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Values `given` at the windows `at`, ascending, carried over to `windows`, pair of neighbours by pair."""
    right = np.clip(np.searchsorted(at, windows, side="left"), 0, len(at) - 1)
    left = np.where(at[right] > windows, np.maximum(right - 1, 0), right)
    share = (windows - at[left]) / np.maximum(at[right] - at[left], 1.0)
    share = np.where(right == left, 0.0, share)
    low, high = given[left], given[right]
    positive = (low > 0) & (high > 0)
    logs = [np.log(np.where(positive, end, 1.0)) for end in (low, high)]
    along = np.exp(logs[0] + share * (logs[1] - logs[0]))
    found: np.ndarray = np.where(positive, along, low + share * (high - low))
    return np.where(share == 0, low, found)


@dataclass(frozen=True)
class Squares:
    """Squares of means that may be negative by chance, of the recordings that have all of them."""

    windows: np.ndarray
    tail: np.ndarray
    """(R, D); NaN where fewer than half of the recordings measured a window."""
    whole: np.ndarray
    """(R,)"""
    error: np.ndarray | None
    """Standard errors of `tail`, if known."""
    dropped: float
    """The longest window that was left out for that; 0: none."""


def shared_squares(tail: Series, whole: Series, error: Series | None) -> Squares | None:
    """Tails and gradients at the windows of which half of the recordings say something; None where there are none.

    What lies between two windows is not filled in: of squares with noise it would no longer be right on average.
    """
    values, windows = _of(tail)
    steps, rows, places = np.intersect1d(tail.steps, whole.steps, return_indices=True)
    base = np.asarray(whole.values, np.float64)[places]
    found = values[rows].copy()
    for row in found:
        known = np.flatnonzero(~np.isnan(row))
        if known.size and _is_nothing(row[known], NOTHING**2):
            row[known[-1] + 1 :] = row[known[-1]]
    usable = np.isfinite(base) & np.isfinite(found).any(1)
    if not usable.any():
        return None
    said = (~np.isnan(found[usable])).sum(0)
    kept = 2 * said >= usable.sum()
    left_out = windows[(said > 0) & ~kept]
    return Squares(
        windows,
        np.where(kept, found, np.nan)[usable],
        base[usable],
        _errors(tail, error, steps[usable], kept),
        float(left_out.max()) if left_out.size else 0.0,
    )


def _errors(
    tail: Series, error: Series | None, steps: np.ndarray, kept: np.ndarray
) -> np.ndarray | None:
    """The standard errors of the same recordings and windows; None where one of them is not there."""
    if error is None or not np.array_equal(error.positions("lag"), tail.positions("lag")):
        return None
    _, _, at = np.intersect1d(steps, error.steps, return_indices=True)
    return np.where(kept, error.values[at], np.nan) if at.size == steps.size else None
