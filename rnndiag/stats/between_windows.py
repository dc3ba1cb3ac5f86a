"""Interpolates window biases of each recording, since sampled sweeps measure different windows in each.

Otherwise medians and means over recordings would be taken over those recordings that happened to measure a window, and
long windows are measured where the gradient reaches far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rnndiag.store.measurement import Series

NOTHING = 1e-3
"""If the bias at the longest window of a recording is at most this, longer windows get the same value."""


def at_window(values: np.ndarray, windows: np.ndarray, window: float) -> float:
    """The value at `window`, from `values` (D,) at `windows` (D,): interpolated linearly, on logarithms where both
    neighbours are positive; beyond the last measured window the last value; NaN before the first."""
    known = np.flatnonzero(~np.isnan(values))
    if not known.size or not window >= max(1.0, windows[known[0]]):
        return float("nan")
    return float(_filled(values[known], windows[known], np.array([float(window)]))[0])


def over_windows(series: Series) -> np.ndarray:
    """The values of a series by recording and window (R, D), interpolated like `at_window`; NaN beyond the longest
    window of a recording, unless its bias there was negligible."""
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
    """Interpolate `given` at ascending windows `at` to `windows`, per pair of neighbours."""
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
    """Unbiased squares of mean gradients (negative by chance), of the recordings that measured all of them."""

    windows: np.ndarray
    tail: np.ndarray
    """(R, D) squared tail at each window; NaN at windows that fewer than half of the recordings measured."""
    whole: np.ndarray
    """(R,) squared full gradient."""
    error: np.ndarray | None
    """(R, D) standard errors of `tail`, if known."""
    dropped: float
    """The longest window left out because too few recordings measured it; 0: none."""


def shared_squares(tail: Series, whole: Series, error: Series | None) -> Squares | None:
    """Squared tails and gradients at windows that at least half of the recordings measured; None if there are none.

    Values are not interpolated: interpolated logarithms of noisy squares would be biased.
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
    counts = (~np.isnan(found[usable])).sum(0)
    kept = 2 * counts >= usable.sum()
    left_out = windows[(counts > 0) & ~kept]
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
    """Standard errors (R, D) of the same recordings and windows; None if any recording lacks them."""
    if error is None or not np.array_equal(error.positions("lag"), tail.positions("lag")):
        return None
    _, _, at = np.intersect1d(steps, error.steps, return_indices=True)
    return np.where(kept, error.values[at], np.nan) if at.size == steps.size else None
