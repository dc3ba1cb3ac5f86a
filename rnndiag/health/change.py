"""Classifies a change against a baseline as identical, within noise, shifted or out of bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rnndiag.health.bounds import Bounds, parse_percent
from rnndiag.health.finding import Change

_SAME = 1e-9


@dataclass(frozen=True)
class Comparison:
    """A number compared with a baseline; all fields are shares of the baseline's size."""

    change: float
    tolerance: float
    word: Change
    noise_known: bool
    """Whether the tolerance comes from the spread of the baseline; else it is a fixed percentage."""

    @property
    def failed(self) -> bool:
        """Whether the change exceeds the tolerance."""
        return not abs(self.change) <= self.tolerance


def compare(
    baseline: Sequence[float],
    candidates: Sequence[float],
    bounds: Bounds,
    false_alarm: float,
    min_baseline_runs: int,
    floor: float = 0.0,
) -> Comparison:
    """The mean of `candidates` against the mean of `baseline`.

    The tolerance of `noise` is the t prediction interval, and at least `bounds.shift`; with fewer than
    `min_baseline_runs` baseline values it is `bounds.shift` alone. `floor` is the size below which a number counts as
    small: changes are shares of max(|mean of the baseline|, floor).
    """
    old = math.fsum(baseline) / len(baseline)
    new = math.fsum(candidates) / len(candidates)
    size = max(abs(old), floor)
    known = bounds.change == "noise" and len(baseline) >= max(2, min_baseline_runs)
    tolerance = bounds.shift if bounds.change == "noise" else parse_percent(bounds.change)
    if known and size > 0:
        half_width = prediction_interval(baseline, len(candidates), false_alarm)
        tolerance = max(tolerance, half_width / size)
    change = _relative(new - old, size)
    word: Change = "within noise"
    if any(bounds.side(value) for value in candidates):
        word = "out of bounds"
    elif abs(change) <= _SAME:
        word = "identical"
    elif not abs(change) <= tolerance:
        word = "shifted"
    return Comparison(change, tolerance, word, known)


def _relative(difference: float, size: float) -> float:
    if difference == 0:
        return 0.0
    return difference / size if size > 0 else math.copysign(math.inf, difference)


def prediction_interval(baseline: Sequence[float], candidates: int, false_alarm: float) -> float:
    """Half the width of the t prediction interval of the mean of `candidates` healthy runs.

    It is t(1 - α/2, n - 1) s sqrt(1/n + 1/m) for m new runs, given n baseline runs of spread s, and holds its α. Three
    standard deviations of 3 seeds would alarm falsely in 12 % of comparisons.

    Args:
        baseline: One value of each of n baseline runs.
        candidates: How many new runs are averaged.
        false_alarm: The share of healthy means that lie outside.

    Raises:
        ValueError: There are fewer than two baseline values.
    """
    # Imported here: a check without a baseline needs no scipy, and starts faster without it.
    from scipy.special import stdtrit

    n = len(baseline)
    if n < 2:
        raise ValueError("a prediction interval needs at least two baseline values")
    mean = math.fsum(baseline) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in baseline) / (n - 1))
    t = float(stdtrit(n - 1, 1.0 - false_alarm / 2.0))
    return t * spread * math.sqrt(1.0 / n + 1.0 / candidates)
