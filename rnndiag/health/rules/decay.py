"""Rule: the factor by which credit changes with each further step back."""

from __future__ import annotations

import numpy as np

from rnndiag.health.numbers import LayerNumbers
from rnndiag.health.rule import RuleSeries, rule
from rnndiag.stats.reach import decay as decay_of_profile


@rule(
    "decay",
    meaning="the factor per step back, fitted to the tail of the credit profile",
    statement="credit changes by a factor of {value} with each step back",
    too_low="The Jacobians lose the gradient: orthogonal W_hh, forget bias 1 to 2, less saturation.",
    too_high="The Jacobians amplify the gradient: scale W_hh down, clip the gradient norm, or lower the learning rate.",
    family="profile",
    rank=31,
    unit="per step",
    typical=lambda numbers: (None, 1.02),
    words=("", "GROWING GRADIENT"),
)
def decay(numbers: LayerNumbers) -> RuleSeries:
    """Fitted decay of the credit profile, per recording."""
    profile = numbers.profiles()
    values = [decay_of_profile(row).value for row in profile.values]
    return RuleSeries(profile.steps, np.array(values))
