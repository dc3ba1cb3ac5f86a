"""Any-time upper bound of the systematic bias of a truncation window, pooled over the looks of one epoch.

Look r sees B sequences; g is the gradient of its batch and S the tail that a window leaves out, both sums over
sequences. U-statistics over pairs of different sequences give N_r, unbiased for |E S|^2, and D_r for |E g|^2, in units
of the look's own noise. For x = eps^2 the statistic Z_r(x) = x D_r - N_r is linear, so sum (Z_r - E Z_r) is a
martingale whatever the weights of the net do between looks. A one-sided normal mixture bounds it at all looks at once.
The variance is estimated from the looks themselves, so validity is asymptotic: benchmarks/auto_window.py measures it at
4 to 64 looks.

All functions take arrays whose first axis counts the looks; the other axes are broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, log1p
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TIGHTEST_AT = 16
"""The mixture is tightest near this number of looks."""
LARGEST = 10.0
"""Larger bounds are reported as infinite."""
HALVINGS = 26


@dataclass(frozen=True)
class Sums:
    """Running sums over looks 1 .. t, for every window."""

    looks: int
    N: Array
    D: Array
    v_N: Array
    """Sum of the jackknife variances of N over sequences, kept apart from the spread of N over looks."""
    v_D: Array
    c_ND: Array
    spread_N: Array
    spread_D: Array
    spread_ND: Array

    @classmethod
    def of(cls, N: Array, D: Array, v_N: Array, v_D: Array, c_ND: Array) -> Sums:
        """From arrays (looks, ...): the statistics of each look with their jackknife variances and covariance."""
        t = len(N)
        n, d = N - N.mean(0), D - D.mean(0)
        k = t / max(t - 1, 1)
        return cls(
            t,
            N.sum(0),
            D.sum(0),
            v_N.sum(0),
            v_D.sum(0),
            c_ND.sum(0),
            k * (n * n).sum(0),
            k * (d * d).sum(0),
            k * (n * d).sum(0),
        )

    def variance(self, x: Any) -> Array:
        """Variance of sum Z_r(x): the larger of the jackknife's and the spread over looks."""
        jackknife = x * x * self.v_D - 2 * x * self.c_ND + self.v_N
        spread = x * x * self.spread_D - 2 * x * self.spread_ND + self.spread_N
        larger: Array = np.maximum(np.maximum(jackknife, spread), 0.0)
        return larger


def boundary(variance: Array, looks: int, alpha: float) -> Array:
    """Bound that a sum with mean zero and this variance exceeds at any look with probability at most alpha
    (asymptotically)."""
    size = 2 * log(1 / (2 * alpha))
    eta = variance / looks * TIGHTEST_AT / (size + log1p(size))
    safe = np.where(eta > 0, eta, 1.0)
    bound = np.sqrt(2 * (variance + eta) * np.log1p(np.sqrt((variance + eta) / safe) / (2 * alpha)))
    found: Array = np.where(eta > 0, bound, 0.0)
    return found


def relative_bound(sums: Sums, alpha: float) -> Array:
    """Smallest eps that is proved: eps^2 sum D - sum N >= boundary. inf if no eps up to `LARGEST` is.

    This is a bound of the bias relative to |E g|.
    """

    def holds(x: Array) -> Any:
        return x * sums.D - sums.N >= boundary(sums.variance(x), sums.looks, alpha)

    shape = np.broadcast_shapes(np.shape(sums.N), np.shape(sums.D))
    low, high = np.full(shape, 1e-8), np.full(shape, LARGEST**2)
    proved = holds(high) & np.isfinite(sums.N)
    for _ in range(HALVINGS):
        middle = np.sqrt(low * high)
        enough = holds(middle)
        high, low = np.where(enough, middle, high), np.where(enough, low, middle)
    found: Array = np.where(proved, np.sqrt(high), np.inf)
    return found


def floor_bound(sums: Sums, floors: Any, alpha: float) -> Array:
    """Bound of the bias relative to floor * sigma, the noise of one step. floors: sum of (floor sigma)^2 over looks."""
    variance = np.maximum(sums.v_N, sums.spread_N)
    high = sums.N + boundary(variance, sums.looks, alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = np.sqrt(np.maximum(high, 0.0) / floors)
    found: Array = np.where(np.isfinite(bound), bound, np.inf)
    return found


def excess(sums: Sums, eps: float, floors: Any) -> Array:
    """Number of standard errors by which the bias exceeds eps: the smaller of those relative to |E g| and to the
    floor."""
    x = eps * eps
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = (sums.N - x * sums.D) / np.sqrt(sums.variance(x))
        absolute = (sums.N - x * floors) / np.sqrt(np.maximum(sums.v_N, sums.spread_N))
    found: Array = np.minimum(relative, absolute)
    return found
