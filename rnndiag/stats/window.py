"""The recommended truncation window: the shortest one whose relative bias is at most a given ε.

Two biases are available. *Minibatch*: measured on the recorded minibatches; where the gradient is mostly noise it
compares noise with noise. *Systematic*: the bias of the mean gradient, from unbiased squares pooled over recordings; it
is used where it is resolved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rnndiag.stats.between_windows import Squares, over_windows, shared_squares
from rnndiag.stats.over_recordings import median_over_recordings

if TYPE_CHECKING:
    from rnndiag.store.reader import StoredRun

Source = Literal["systematic", "minibatch"]
NOT_MEASURED = "the systematic bias was not measured"
"""Reason given where the systematic bias is missing: a batch of one sequence, or a loss that mixes sequences."""
EPSILON = 0.1
_RESOLVED = 3.0
"""A pooled mean square is resolved where it is this many standard errors from zero."""


@dataclass(frozen=True)
class Recommendation:
    """The recommended window τ (or chunk k) as `steps`; inf if the measured decay never reaches the allowed bias.

    `source`: the bias that decided. `extrapolated`: the measured lags (`within`) do not reach that far, and `steps` is
    an upper bound. `between`: the measured windows right before and after `steps` if it was interpolated between their
    logarithms. `bias`: the relative bias at `steps` (if extrapolated, at the last lag).
    """

    steps: float
    epsilon: float
    source: Source
    extrapolated: bool
    within: int
    bias: float
    recordings: int = 1
    what: str = "window"
    note: str = ""
    between: tuple[int, int] | None = None

    @property
    def reached(self) -> bool:
        """Whether `steps` is finite."""
        return math.isfinite(self.steps)

    @property
    def text(self) -> str:
        """The recommendation as text."""
        if math.isnan(self.steps):
            return f"no {self.what} can be recommended: {self.note or 'the bias is not finite'}"
        if not self.reached:
            return (
                f"no {self.what} within {self.within} steps keeps the bias under {self.epsilon:.0%}"
            )
        most = "at most " if self.extrapolated else ""
        how = ", extrapolated from the measured decay" if self.extrapolated else ""
        if self.between is not None:
            most, how = (
                "about ",
                ", interpolated between the measured {} and {}".format(*self.between),
            )
        of = "systematic bias" if self.source == "systematic" else "bias on the minibatch"
        note = f"; {self.note}" if self.note else ""
        return f"{most}{self.steps:.0f} steps for a {of} under {self.epsilon:.0%}{how}{note}"


def smallest_window(
    bias: Any,
    epsilon: float = EPSILON,
    windows: Any = None,
    steps: int | None = None,
    *,
    interpolate: bool = True,
    **facts: Any,
) -> Recommendation:
    """The smallest τ such that every measured τ' >= τ has a relative bias <= ε; where shorter ones down to the last one
    above ε were not measured, the shortest of those that is under ε on the way between the two (`interpolate`).

    `bias[i]` belongs to the window `windows[i]`, in any order, and NaN says that this window was not measured. Without
    `windows` they are 0, 1, 2, ..., and NaN at the end is padding. `steps` is T: at τ = T nothing is cut, so an
    extrapolated bound never exceeds it.
    """
    values = np.asarray(bias, np.float64).reshape(-1)
    at = np.arange(values.size) if windows is None else np.asarray(windows, np.float64).reshape(-1)
    if windows is not None:
        order = np.argsort(at, kind="stable")
        order = order[~np.isnan(values[order])]
        values, at = values[order], at[order]
    known = np.flatnonzero(~np.isnan(values))
    values, at = (
        values[: known[-1] + 1 if known.size else 0],
        at[: known[-1] + 1 if known.size else 0],
    )
    facts = {"source": "minibatch", **facts}
    if not values.size or not np.isfinite(values).all():
        within = int(at[-1]) if at.size else 0
        note = "the bias is not finite" if values.size else "no bias was measured"
        return Recommendation(
            math.nan,
            epsilon,
            extrapolated=False,
            within=within,
            bias=math.nan,
            **{**facts, "note": note},
        )
    within = int(at[-1])
    over = np.flatnonzero(values > epsilon)
    first = over[-1] + 1 if over.size else 0
    if first < values.size:
        place = _put_between(at, values, first, epsilon) if interpolate else None
        return Recommendation(
            float(at[first]) if place is None else place[0],
            epsilon,
            extrapolated=False,
            within=within,
            bias=float(values[first]) if place is None else place[1],
            between=None if place is None else (int(at[first - 1]), int(at[first])),
            **facts,
        )
    bound = _extrapolated(values, at, epsilon)
    if steps is not None:
        bound = min(bound, float(steps)) if steps > within else float(within)
    return Recommendation(
        bound, epsilon, extrapolated=True, within=within, bias=float(values[-1]), **facts
    )


def _put_between(
    at: np.ndarray, bias: np.ndarray, first: int, epsilon: float
) -> tuple[float, float] | None:
    """The smallest window with a bias below ε, and its bias, interpolated on logarithms between the first window
    measured below ε and the one before it; None if there is none between the two."""
    # the bias at τ = T is exactly 0, which has no logarithm
    if not first or bias[first] <= 0 or epsilon <= 0:
        return None
    width = float(at[first] - at[first - 1])
    high = math.log(bias[first - 1])
    fall = high - math.log(bias[first])
    if not 1 < width < math.inf or not fall > 0:
        return None
    steps = max(1, math.ceil((high - math.log(epsilon)) / fall * width))
    if steps >= width:
        return None
    found = math.exp(high - fall / width * steps)
    return float(at[first - 1]) + steps, min(epsilon, found)


def _extrapolated(values: np.ndarray, at: np.ndarray, epsilon: float) -> float:
    """Where the bias falls to ε on the slower of two fitted decays: over the later half and over the last quarter."""
    factors = []
    for share in (1 / 2, 3 / 4):
        tail = (at >= at[-1] * share) & (values > 0)
        if tail.sum() >= 2:
            x = at[tail] - at[tail].mean()
            factors.append(float(np.polyfit(x, np.log(values[tail]), 1)[0]))
    slope = max(factors, default=0.0)
    if slope >= -1e-12 or epsilon <= 0:
        return math.inf
    return float(math.ceil(at[-1] + math.log(epsilon / values[-1]) / slope))


@dataclass(frozen=True)
class Systematic:
    """Bias of the mean gradient per window: `bias` (NaN where the square is negative by noise), standard error of its
    square."""

    bias: np.ndarray
    square: np.ndarray
    square_error: np.ndarray
    resolved: bool
    recordings: int


def systematic_bias(tail: Any, gradient: Any, tail_error: Any = None) -> Systematic:
    """Pool |E S_d|² and |E g|² over recordings: tail (R, D), gradient (R,), standard errors of tail (R, D) if
    known.

    A tail is NaN in recordings that did not measure it; each is pooled over those that did. Standard errors come from
    the spread over recordings, or with fewer than 3 recordings from `tail_error`. Resolved means that |E g|² is 3
    standard errors above zero.
    """
    tails = np.atleast_2d(np.asarray(tail, np.float64))
    gradients = np.asarray(gradient, np.float64).reshape(-1)
    usable = np.isfinite(gradients) & np.isfinite(tails).any(1)
    tails, gradients = tails[usable], gradients[usable]
    count, lags = gradients.size, tails.shape[1]
    if not count:
        empty = np.full(lags, np.nan)
        return Systematic(empty, empty, empty, False, 0)
    numerator, denominator = _pooled(tails), float(gradients.mean())
    times = (~np.isnan(tails)).sum(0)
    if count >= 3:
        spread = np.sqrt(_pooled((tails - numerator) ** 2) * times / np.maximum(times - 1, 1))
        error = np.where(times >= 3, spread / np.sqrt(np.maximum(times, 1)), np.nan)
        base_error = float(gradients.std(ddof=1)) / math.sqrt(count)
    else:
        given = (
            np.full((count, lags), np.nan)
            if tail_error is None
            else np.atleast_2d(np.asarray(tail_error, np.float64))[usable]
        )
        error = np.sqrt(_pooled(given**2) / np.maximum(times, 1))
        # The tail of window 0 is the whole gradient.
        base_error = float(error[0])
    if not denominator > 0:
        empty = np.full(lags, np.nan)
        return Systematic(empty, empty, empty, False, count)
    square = numerator / denominator
    square_error = np.sqrt(error**2 + (square * base_error) ** 2) / denominator
    bias = np.sqrt(np.maximum(square, 0.0))
    return Systematic(bias, square, square_error, bool(denominator > _RESOLVED * base_error), count)


def _pooled(values: np.ndarray) -> np.ndarray:
    """Mean over recordings, ignoring NaN; NaN where no recording measured it."""
    times = (~np.isnan(values)).sum(0)
    total: np.ndarray = np.where(times > 0, np.nansum(values, 0) / np.maximum(times, 1), np.nan)
    return total


def _systematic_window(
    squares: Squares, epsilon: float, length: int | None
) -> Recommendation | None:
    """The recommendation by systematic bias; None if it is not resolved to within ε, or could only be decided by
    windows that too few recordings measured."""
    found = systematic_bias(squares.tail, squares.whole, squares.error)
    if not found.resolved:
        return None
    facts: dict[str, Any] = {"source": "systematic", "recordings": found.recordings}
    answer = smallest_window(found.bias, epsilon, squares.windows, length, **facts)
    if not answer.reached or (answer.extrapolated and squares.dropped > answer.within):
        return None
    known = np.isfinite(found.square_error)
    errors = found.square_error[known]
    away = np.abs(squares.windows - min(answer.steps, answer.within))
    return answer if known.any() and errors[away[known].argmin()] <= epsilon**2 else None


def recommended(
    run: StoredRun,
    layer: str,
    steps: Sequence[int] | np.ndarray,
    epsilon: float = EPSILON,
    length: int | None = None,
    prefix: str = "",
) -> Recommendation:
    """The window of one layer over these recordings, of length T: systematic where resolved, else the minibatch's.

    `prefix` seam_: over the chunk and the steps that were kept before it.
    """
    biases = run.select(f"{prefix}window_bias", layer, steps=steps)
    note = NOT_MEASURED
    tails, errors, gradients = (
        run.find(f"{prefix}{name}", layer, steps)
        for name in ("tail_mean_square", "tail_mean_square_error", "gradient_mean_square")
    )
    if tails is not None and gradients is not None:
        squares = shared_squares(tails, gradients, errors)
        answer = None if squares is None else _systematic_window(squares, epsilon, length)
        if answer is not None:
            return answer
        note = NOT_MEASURED if squares is None else "the systematic bias is not resolved"
    windows, typical = biases.positions("lag"), median_over_recordings(over_windows(biases))
    return smallest_window(
        typical, epsilon, windows, length, recordings=len(biases.steps), note=note
    )
