"""How far a healthy run may lie from its baseline: a t prediction interval, Student's quantile from plain math.

`3 σ of the baseline's seeds` is not 3 σ: with 3 seeds it alarms falsely in 12 % of comparisons. The prediction
interval for the mean of m new runs, given n baseline runs of spread s, is ± t(1 - α/2, n - 1) s sqrt(1/n + 1/m), and
holds its α.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def beta_regularized(a: float, b: float, x: float) -> float:
    """I_x(a, b), by its continued fraction (Lentz), to about 1e-14."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - beta_regularized(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0) or tiny)
    fraction = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        before = fraction
        for step in (even, odd):
            d = 1.0 / (1.0 + step * d or tiny)
            c = 1.0 + step / c or tiny
            fraction *= d * c
        if abs(fraction - before) <= 1e-16 * abs(fraction):
            break
    return math.exp(log_front) * fraction / a


def t_cdf(t: float, freedom: float) -> float:
    """P(T <= t) of Student's t with `freedom` degrees of freedom."""
    tail = 0.5 * beta_regularized(freedom / 2.0, 0.5, freedom / (freedom + t * t))
    return 1.0 - tail if t > 0 else tail


def t_quantile(probability: float, freedom: float) -> float:
    """The t with P(T <= t) = probability, by bisection; probability in (1/2, 1)."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability and high < 1e12:
        high *= 2.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return 0.5 * (low + high)


def prediction_interval(baseline: Sequence[float], candidates: int, false_alarm: float) -> float:
    """Half the width of the interval in which the mean of `candidates` healthy runs lies.

    With n baseline values of spread s: t(1 - false_alarm/2, n - 1) s sqrt(1/n + 1/candidates). Needs n >= 2.
    """
    n = len(baseline)
    if n < 2:
        raise ValueError("a prediction interval needs at least two baseline values")
    mean = math.fsum(baseline) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in baseline) / (n - 1))
    t = t_quantile(1.0 - false_alarm / 2.0, n - 1)
    return t * spread * math.sqrt(1.0 / n + 1.0 / candidates)
