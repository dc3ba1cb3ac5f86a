"""What each recording says of windows that others measured and it did not: sampled sweeps do not measure the same ones.

Medians and means over recordings would otherwise be those of whatever recordings happened to look at a window; the
long ones are looked at where the gradient reaches far.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rnndiag.run.measurement import Series

NOTHING = 1e-3
"""Behind the last window of a recording there is no more than there, where that is at most this share of window 0."""


def over_windows(series: Series) -> np.ndarray:
    """The values of a series by recording and window (R, D); NaN where a recording says nothing of a window.

    Between two windows of a recording values lie on a straight line, of their logarithms where all are positive.
    """
    return _rows(series, _filled)


def shared_windows(series: Series) -> np.ndarray:
    """The same without what lies between, and without windows of which fewer than half of the recordings say anything.

    For squares that may be negative by chance: what is put between two of them is no longer right on average.
    """
    values = _rows(series, lambda row, windows: row)
    many = 2 * (~np.isnan(values)).sum(0) >= len(values)
    return np.where(many, values, np.nan)


def _rows(series: Series, between: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    values = np.asarray(series.values, np.float64)
    if not np.isnan(values).any():
        return values
    windows = series.positions("lag").astype(np.float64)
    return np.stack([_with_nothing_behind(row, between(row, windows)) for row in values])


def _with_nothing_behind(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(~np.isnan(values))
    if not known.size or not abs(values[known[-1]]) <= NOTHING * abs(values[known[0]]):
        return found
    found = found.copy()
    found[known[-1] + 1 :] = values[known[-1]]
    return found


def _filled(values: np.ndarray, windows: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(~np.isnan(values))
    if not known.size:
        return values
    at, given = windows[known], values[known]
    found: np.ndarray = np.interp(windows, at, given, left=np.nan, right=np.nan)
    if (given > 0).all():
        found = np.exp(np.interp(windows, at, np.log(given), left=np.nan, right=np.nan))
    found[known] = given
    return found
