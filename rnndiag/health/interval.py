"""How far a healthy run may lie from its baseline: a t prediction interval.

`3 σ of the baseline's seeds` is not 3 σ: with 3 seeds it alarms falsely in 12 % of comparisons. The prediction
interval for the mean of m new runs, given n baseline runs of spread s, is ± t(1 - α/2, n - 1) s sqrt(1/n + 1/m), and
holds its α.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def prediction_interval(baseline: Sequence[float], candidates: int, false_alarm: float) -> float:
    """Half the width of the interval in which the mean of `candidates` healthy runs lies.

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
