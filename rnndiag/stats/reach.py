"""Reach, decay and half-life of a credit profile: how far back the gradient carries.

The one place where these numbers are made; recorder, health and report all call it. A profile is given as natural
logarithms over lag 0, 1, ..., D-1, as the quantity `credit_profile` holds it: -inf is exactly zero, NaN at the end is
padding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnndiag.errors import BadArgument

SHOWS = 0.01
"""A standard error below this share of a number is not printed."""


class Answer(float):
    """A number of lags (or a factor) that may not exist: inf = not reached within the measured lags, nan = undefined.

    A subclass of float, so that `10 <= answer <= 40` works; `reached`, `within` and `text` give the details.
    """

    reached: bool
    within: int
    reason: str

    def __new__(cls, value: float, reached: bool, within: int, reason: str = "") -> Answer:
        """`value` in steps (or a factor), whether it was `reached`, `within` how many lags, and why not."""
        answer = super().__new__(cls, value)
        answer.reached, answer.within, answer.reason = reached, within, reason
        return answer

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (float(self), self.reached, self.within, self.reason)

    @property
    def value(self) -> float:
        """The plain float."""
        return float(self)

    @property
    def text(self) -> str:
        """The number with three significant digits, or the reason why there is none."""
        return format(float(self), ".3g") if self.reached else self.reason

    def __repr__(self) -> str:
        return f"{type(self).__name__}({float(self):.6g}, reached={self.reached}, within={self.within})"


class Reach(Answer):
    """The lag (in steps) within which a share of the credit lies.

    `error`: its standard error, where not all losses of all sequences were followed; NaN where that is not known.
    """

    error: float = math.nan

    def with_error(self, error: float) -> Reach:
        """A copy with its standard error."""
        found = Reach(self.value, self.reached, self.within, self.reason)
        found.error = error
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return (*super().__reduce__(), {"error": self.error})

    @property
    def text(self) -> str:
        """The number with its standard error if large enough to print, or the reason why there is no number."""
        return f"{self.number}{self.give_or_take}"

    @property
    def number(self) -> str:
        """The number without its error, with three digits or as many as the error allows; or why there is none."""
        if self.give_or_take:
            return f"{self.value:.{self._places}f}"
        return super().text

    @property
    def give_or_take(self) -> str:
        """` ± 8.1`, or empty where the error is unknown or too small to print."""
        shows = self.reached and 0 < self.error < math.inf and self.error >= SHOWS * self.value
        return f" ± {self.error:.{self._places}f}" if shows else ""

    @property
    def _places(self) -> int:
        """Decimals needed to print two digits of the error; 0 if the error is 10 or more."""
        exponent = int(f"{self.error:.1e}".partition("e")[2])
        return max(0, 1 - exponent)

    def __repr__(self) -> str:
        known = "" if math.isnan(self.error) else f", error={self.error:.3g}"
        return f"{super().__repr__()[:-1]}{known})"


class Decay(Answer):
    """Factor per step by which the profile's tail changes: below 1 it shrinks."""


class HalfLife(Answer):
    """Steps back after which the credit has halved."""


def measured(profile_log: Any) -> np.ndarray:
    """The profile as float64 without the NaN padding at its end."""
    profile = np.asarray(profile_log, dtype=np.float64)
    if profile.ndim != 1:
        raise BadArgument(
            f"A credit profile has one number a lag, and this is an array of shape {profile.shape}.",
            "Give ln profile: `sweep.profile.log` of a lag sweep, or the column `profile` of the quantity "
            "credit_profile, `values[:, 0]`.",
        )
    if profile.size and not math.isnan(profile[-1]):
        return profile
    known = np.flatnonzero(~np.isnan(profile))
    return profile[: known[-1] + 1] if known.size else profile[:0]


def _fault(profile: np.ndarray) -> str:
    if not profile.size:
        return "not measured"
    largest = profile.max()
    if math.isnan(largest) or largest == math.inf:
        return "not finite"
    return "no gradient at any lag" if largest == -math.inf else ""


def reach(profile_log: Any, share: float = 0.9, steps: int | None = None) -> Reach:
    """Number of steps back within which a share of the credit lies.

    It is the n at which F(n) = `share`, where F(n) = Σ_{d<n} profile(d) / Σ_{d<D} profile(d) is piecewise linear with
    F(0) = 0.

    Args:
        profile_log: ln of the credit profile over the lags 0 .. D - 1, (D,).
        share: The share of the credit, above 0 and at most 1.
        steps: Number of lags of the sequence, T. Where only D < T were measured, and the measured decay of the tail
            leaves more than 1 - `share` of the credit beyond them, the answer is 'not reached within D'. None: D.

    Returns:
        A float with `.reached`, `.within` and `.text`; NaN where it was not reached.

    Raises:
        BadArgument: `share` is not above 0 and at most 1.

    Example:
        >>> import numpy as np
        >>> print(f"{rnndiag.reach(np.log(0.5) * np.arange(50)):.2f}")  # credit halves with each step
        3.40
    """
    try:
        fits = 0 < share <= 1
    except TypeError:
        fits = False
    if not fits:
        raise BadArgument(
            f"The share {share!r} of the credit is not a number above 0 and at most 1.",
            "Write 0.9 for 90 %, and name a layer by layer=.",
        )
    profile = measured(profile_log)
    within = profile.size
    fault = _fault(profile)
    if fault:
        return Reach(math.nan, False, within, fault)
    credit = np.exp(profile - profile.max())
    covered = np.cumsum(credit)
    if steps is not None and steps > within:
        beyond = _credit_beyond(profile, steps)
        if covered[-1] < share * (covered[-1] + beyond):
            return Reach(math.inf, False, within, f"not reached within {within}")
    target = share * covered[-1]
    lag = min(int(np.searchsorted(covered, target)), within - 1)
    before = covered[lag - 1] if lag else 0.0
    return Reach(min(lag + (target - before) / credit[lag], within), True, within)


def reach_error(
    profile_log: Any, without_one: Any = None, unsampled: float = 0.0, share: float = 0.9
) -> float:
    """Jackknife standard error of the reach of a profile that was measured from sampled output steps.

    Args:
        profile_log: ln profile, (D,).
        without_one: ln profile without each of the K sampled output steps in turn, (K, D); None: nothing was sampled.
        unsampled: Share of the output steps that was not followed.
        share: The share of the credit within the reach.

    Returns:
        The root of variance plus squared bias, in steps: the reach of a sample is too short on average, because the few
        losses whose credit reaches far are often not in it. 0 where nothing was sampled, NaN where it is unknown.

    Example:
        >>> import numpy as np
        >>> profile = np.log(0.5) * np.arange(50)
        >>> rnndiag.reach_error(profile)  # every output step was followed
        0.0
        >>> without_one = np.stack([np.log(rate) * np.arange(50) for rate in (0.45, 0.5, 0.55)])
        >>> print(f"{rnndiag.reach_error(profile, without_one, unsampled=0.9):.2f}")
        0.53
    """
    if without_one is None:
        return 0.0
    found = np.array([reach(profile, share).value for profile in np.asarray(without_one)])
    units, whole = len(found), reach(profile_log, share).value
    if units < 2 or not np.isfinite(found).all() or not math.isfinite(whole):
        return math.nan
    variance = (units - 1) / units * float(((found - found.mean()) ** 2).sum())
    bias = (units - 1) * (float(found.mean()) - whole)
    return math.sqrt(unsampled * variance + (unsampled * bias) ** 2)


def _credit_beyond(profile: np.ndarray, steps: int) -> float:
    """Estimated credit of the unmeasured lags D..T-1, from the decay of the tail, in units of the profile's largest."""
    factor = decay(profile)
    if not factor.reached or factor <= 0 or not np.isfinite(profile[-1]):
        return 0.0
    lags = np.arange(1, steps - profile.size + 1)
    return float(np.exp(profile[-1] - profile.max() + lags * math.log(factor)).sum())


def decay(profile_log: Any) -> Decay:
    """Factor per step of the profile's tail: a straight line through the logs of the later half of its lags.

    The lags go as far as the logs are finite; a profile with nothing beyond lag 0 has the factor 0.
    """
    profile = measured(profile_log)
    within = profile.size
    fault = _fault(profile)
    if not fault and within < 2:
        fault = f"not measurable within {within}"
    if fault:
        return Decay(math.nan, False, within, fault)
    finite = np.flatnonzero(np.isfinite(profile))
    tail = finite[finite >= finite[-1] / 2]
    if finite[-1] == 0:
        return Decay(0.0, True, within)
    if tail.size < 2:
        tail = finite[-2:]
    if tail.size < 2:
        return Decay(math.nan, False, within, f"not measurable within {within}")
    slope = np.polyfit(tail - tail.mean(), profile[tail], 1)[0]
    return Decay(float(np.exp(slope)), True, within)


def half_life(profile_log: Any) -> HalfLife:
    """The lag at which the profile first falls to half of lag 0, a straight line in the logs between lags."""
    profile = measured(profile_log)
    within = profile.size
    fault = _fault(profile) or ("" if np.isfinite(profile[0]) else "no gradient at lag 0")
    if fault:
        return HalfLife(math.nan, False, within, fault)
    target = profile[0] - math.log(2.0)
    below = np.flatnonzero(profile <= target)
    if not below.size:
        return HalfLife(math.inf, False, within, f"not reached within {within}")
    lag = int(below[0])
    upper, lower = profile[lag - 1], profile[lag]
    step = (upper - target) / (upper - lower) if np.isfinite(lower) else 0.0
    return HalfLife(lag - 1 + step, True, within)
