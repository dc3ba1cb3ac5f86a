"""Statistics of the losses of all steps: their start, their end, and whether they still fall."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TAIL = 0.1
"""The end of a fit is this share of its steps, at least 10."""
CLEAR = 5.0
"""A fall is significant from this many standard errors on."""
SMALL = 0.02
"""A fall over half of the second half counts only from this share of the final loss on."""


@dataclass(frozen=True)
class LossCurve:
    """Statistics of the finite losses of a fit; NaN if there are none.

    After the first 200 steps of a fit with short steps only every n-th loss is stored, so positions in the fit are
    shares of its steps.
    """

    count: int
    """Number of steps with a known loss."""
    steps: int
    """Number of steps of the fit."""
    last_step: int
    first: float
    """Loss of the first step."""
    start: float
    """Median of the first 3 losses."""
    early: float
    """Median from 5 to 15 % of the steps, after the initial fall of a net that started far off."""
    end: float
    """Median of the last tenth."""
    best: float
    """The lowest running median over `window` losses."""
    best_step: int
    noise: float
    """Standard deviation of the noise in the second half, from the median absolute difference."""
    start_noise: float
    """Standard deviation of the noise in the first fifth."""
    window: int
    """Number of losses in the last tenth."""
    falling: bool
    rise: float
    """The highest running median of 3 losses relative to `start`."""
    ends_nonfinite: bool
    first_nonfinite: int | None
    """The first step whose loss is not finite."""


def loss_curve(steps: np.ndarray, losses: np.ndarray) -> LossCurve:
    """The curve of these losses (n,), one a training step."""
    count = len(losses)
    finite = np.isfinite(losses)
    known, at = losses[finite], steps[finite]
    bad = np.flatnonzero(~finite)
    ends_bad = bool(count) and not bool(finite[-5:].all())
    first_bad = int(steps[bad[0]]) if bad.size else None
    last_step = int(steps[-1]) if count else 0
    length = last_step - int(steps[0]) + 1 if count else 0
    if not known.size:
        nan = math.nan
        numbers = (nan, nan, nan, nan, nan, 0, nan, nan)
        return LossCurve(count, length, last_step, *numbers, 1, False, nan, ends_bad, first_bad)
    window = max(10, int(np.sum(at > last_step - TAIL * length)))
    start = float(np.median(known[:3]))
    medians = _running_median(known, window)
    lowest, first = int(np.argmin(medians)), int(steps[0])
    return LossCurve(
        count=count,
        steps=length,
        last_step=last_step,
        first=float(known[0]),
        start=start,
        early=_median(known[(at >= first + 0.05 * length) & (at <= first + 0.15 * length)], start),
        end=float(np.median(known[-window:])),
        best=float(medians[lowest]),
        best_step=int(at[min(lowest + window // 2, len(at) - 1)]),
        noise=_noise(known[at > last_step - length / 2]),
        start_noise=_noise(known[: max(20, count // 5)]),
        window=window,
        falling=_falling(known, at, window),
        rise=float(np.max(_running_median(known, 3)) / max(abs(start), 1e-9)),
        ends_nonfinite=ends_bad,
        first_nonfinite=first_bad,
    )


def _median(values: np.ndarray, otherwise: float) -> float:
    return float(np.median(values)) if values.size else otherwise


def _running_median(values: np.ndarray, window: int) -> np.ndarray:
    width = min(window, len(values))
    # A long fit is thinned: its medians change slowly, and every window of it would cost memory.
    stride = max(1, len(values) // 20_000)
    views = np.lib.stride_tricks.sliding_window_view(values, width)[::stride]
    if stride > 1 or views.size > 5e6:
        views = views[:: max(1, int(views.size // 5e6))]
    found: np.ndarray = np.median(views, axis=1)
    return (
        found
        if len(found) == len(values) - width + 1
        else np.repeat(found, -(-(len(values) - width + 1) // len(found)))[
            : len(values) - width + 1
        ]
    )


def _noise(values: np.ndarray) -> float:
    """Standard deviation of the noise from step to step, from the median absolute difference of neighbours."""
    if len(values) < 5:
        return 0.0
    steps = np.diff(values)
    return float(1.4826 * np.median(np.abs(steps - np.median(steps))) / math.sqrt(2))


def _falling(known: np.ndarray, at: np.ndarray, window: int) -> bool:
    """Whether the mean of the last quarter is significantly below that of the quarter before it."""
    quarter = (at[-1] - at[0] + 1) / 4
    before = known[(at > at[-1] - 2 * quarter) & (at <= at[-1] - quarter)]
    after = known[at > at[-1] - quarter]
    half = min(len(before), len(after))
    if half <= 3:
        return False
    # Spikes are cut off at the 95 % quantile: a single one would carry the mean.
    drop = _clipped_mean(before) - _clipped_mean(after)
    error = math.sqrt((before.std() ** 2 + after.std() ** 2) / half)
    end = float(np.median(known[-window:]))
    return drop > CLEAR * error and drop > SMALL * abs(end)


def _clipped_mean(values: np.ndarray) -> float:
    return float(np.mean(np.minimum(values, np.quantile(values, 0.95))))
