"""Rule: the spectral radius of the recurrent weights."""

from __future__ import annotations

import numpy as np

from rnndiag.health.numbers import LayerNumbers
from rnndiag.health.rule import RuleSeries, rule


@rule(
    "spectral_radius",
    meaning="the largest ρ(W_hh) over the gates' blocks",
    statement="ρ(W_hh) is {value}",
    too_low="The recurrence is weak: start from an orthogonal W_hh.",
    too_high="The recurrence is strong: lower the learning rate, clip the gradient norm, or decay W_hh.",
    rank=41,
    of_weights=True,
)
def spectral_radius(numbers: LayerNumbers) -> RuleSeries:
    """Largest spectral radius of any gate's block of W_hh, per recording."""
    found = numbers.get("spectral_radius")
    return RuleSeries(found.steps, np.max(found.values.reshape(len(found.steps), -1), axis=1))
