"""Gradients that grow on their way back through a dynamics that is itself unstable."""

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
    too_low="",
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
    """The largest credit at any lag over the credit at lag 0; 1 where the largest Lyapunov exponent is not above 0."""
    profile = numbers.get("credit_profile").pick("profile_stat", "profile")
    with np.errstate(over="ignore"):
        growth = np.exp(
            np.nanmax(np.where(np.isnan(profile.values), -np.inf, profile.values), axis=1)
        )
    try:
        exponents = numbers.ever("lyapunov_exponents").pick("part_stat", "value")
    except NotRecorded:
        return RuleSeries(
            profile.steps, growth, "λ_1 was not recorded: the growth of the credit alone decides"
        )
    at = np.searchsorted(exponents.steps, profile.steps, side="right") - 1
    stable = exponents.values[np.maximum(at, 0)].reshape(len(profile.steps), -1)[:, 0] <= 0
    return RuleSeries(profile.steps, np.where(stable, np.minimum(growth, 1.0), growth))
