"""The headline numbers of a run: reach and recommended window over the judged recordings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rnndiag.stats.advice import measured
from rnndiag.stats.over_recordings import lengths_of, of_several_steps
from rnndiag.stats.reach import Reach, reach
from rnndiag.stats.window import EPSILON, Recommendation, recommended
from rnndiag.store.judged import DEFAULT_WINDOW
from rnndiag.store.layer_names import is_stack

if TYPE_CHECKING:
    from rnndiag.store.measurement import Series
    from rnndiag.store.reader import StoredRun

KNOWN_SHARE = 0.9
"""The share of credit for which recordings store the standard error of the reach."""


def run_reach(
    run: StoredRun,
    share: float = 0.9,
    layer: str | None = None,
    window: str = DEFAULT_WINDOW,
) -> Reach:
    """`Run.reach`: of one layer, or of the layer with the shortest reach."""
    steps = run.judged(window)
    layers = run.layers_for("credit_profile", layer, steps)
    if layer is None:
        layers = tuple(name for name in layers if not is_stack(name))
        layers = of_several_steps(run, layers, steps)
    answers = [_layer_reach(run, name, share, steps) for name in layers]
    return min(answers, key=lambda answer: (math.isnan(answer), float(answer)))


def _layer_reach(run: StoredRun, layer: str, share: float, steps: np.ndarray) -> Reach:
    """Median reach over recordings; undefined ones (nan) are ignored unless all are.

    Its standard error is that of the middle recording, or of the mean of the middle two.
    """
    series = run.find("credit_profile", layer, steps)
    if series is None:
        series = run.select("credit_profile", layer, steps)  # raises, and says why
    profiles = series.sel(profile_stat="profile").values
    answers = [
        reach(profile, share, length)
        for profile, length in zip(profiles, lengths_of(run, layer, series.steps), strict=True)
    ]
    known = [answer for answer in answers if not math.isnan(answer)]
    if not known:
        return answers[-1]
    errors = [math.nan] * len(answers)
    if share == KNOWN_SHARE:
        errors = _reach_errors(run, layer, series)
    pairs = zip(map(float, answers), errors, strict=True)
    middle, error = _median([pair for pair in pairs if not math.isnan(pair[0])])
    within = max(answer.within for answer in known)
    reason = "" if math.isfinite(middle) else f"not reached within {within}"
    return Reach(middle, not reason, within, reason).with_error(error)


def _reach_errors(run: StoredRun, layer: str, profiles: Series) -> list[float]:
    """The standard error of the reach of each of these profiles; NaN where it was not recorded."""
    steps = profiles.steps
    found = run.find("reach_error", layer, steps)
    if found is None or found.phase != profiles.phase:
        return [math.nan] * len(steps)
    errors = dict(zip(found.steps.tolist(), np.asarray(found.values).tolist(), strict=True))
    return [errors.get(int(step), math.nan) for step in steps]


def _median(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Median of (value, standard error) pairs and its standard error; inf if one of two middle values is inf."""
    ordered = sorted(pairs)
    (low, below), (high, above) = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if len(ordered) % 2:
        return high, above
    return high if math.isinf(high) else (low + high) / 2, math.hypot(below, above) / 2


def run_window(
    run: StoredRun,
    epsilon: float = EPSILON,
    layer: str | None = None,
    window: str = DEFAULT_WINDOW,
) -> Recommendation:
    """`Run.window`: of one layer, or of the layer that needs the longest window."""
    steps = run.judged(window)
    places = [measured(run, name, steps) for name in run.layers_for("window_bias", layer, steps)]
    answers = [
        recommended(run, one.name, one.steps, epsilon, one.length, one.prefix)
        for one in places
        if one is not None
    ]
    return max(answers, key=lambda answer: (math.isnan(answer.steps), answer.steps))
