"""Rule: gradients that grow backwards in time while the dynamics is unstable."""

from __future__ import annotations

import numpy as np

from rnndiag.health.bounds import Bounds
from rnndiag.health.numbers import LayerNumbers, NotRecorded
from rnndiag.health.rule import RuleSeries, rule

LIMIT = 100.0


@rule(
    "exploding",
    meaning="growth of the credit along the lag, where λ_1 > 0 (or was not measured)",
    statement="credit grows at most {value} times along the lag",
    too_high="Scale W_hh down (orthogonal, gain 1), clip the gradient norm, or lower the learning rate.",
    family="profile",
    rank=1,
    unit="x",
    digits=2,
    defaults=Bounds(max=LIMIT),
    words=("", "EXPLODING"),
    comparable=False,
)
def exploding(numbers: LayerNumbers) -> RuleSeries:
    """Largest credit at any lag over that at lag 0, per recording; 1 if the largest Lyapunov exponent is at most 0."""
    profile = numbers.profiles()
    with np.errstate(over="ignore", invalid="ignore"):
        largest = np.max(np.where(np.isnan(profile.values), -np.inf, profile.values), axis=1)
        growth = np.exp(largest)
    growth[np.isnan(profile.values).all(axis=1)] = np.nan
    try:
        exponents = numbers.get("lyapunov_exponents").pick("part_stat", "value")
    except NotRecorded:
        return _without_exponents(numbers, profile.steps, growth)
    at = np.searchsorted(exponents.steps, profile.steps, side="right") - 1
    stable = exponents.values[np.maximum(at, 0)].reshape(len(profile.steps), -1)[:, 0] <= 0
    return RuleSeries(profile.steps, np.where(stable, np.minimum(growth, 1.0), growth))


def _without_exponents(numbers: LayerNumbers, steps: np.ndarray, growth: np.ndarray) -> RuleSeries:
    """Growth in a window without a measured λ_1: an earlier stable exponent does not excuse it."""
    try:
        earlier = numbers.ever("lyapunov_exponents").pick("part_stat", "value")
    except NotRecorded:
        return RuleSeries(
            steps, growth, "λ_1 was not recorded: the growth of the credit alone decides"
        )
    if earlier.values.reshape(len(earlier.steps), -1)[-1, 0] > 0:
        return RuleSeries(steps, growth)
    if not np.nanmax(growth, initial=0.0) > LIMIT:
        return RuleSeries(steps, growth)
    raise NotRecorded(
        f"credit grows along the lag, and λ_1 was measured last at step {int(earlier.steps[-1])}, before the window"
    )
