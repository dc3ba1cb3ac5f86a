"""Rule: units or gates whose activation is saturated, so that no gradient passes."""

from __future__ import annotations

import numpy as np

from rnndiag.health.numbers import LayerNumbers, NotRecorded
from rnndiag.health.rule import RuleSeries, rule


@rule(
    "saturation",
    meaning="share of units whose activation derivative stays below 0.05; of a gated cell, of gate activations "
    "below 0.05 or above 0.95",
    statement="{percent} of the activations are saturated",
    too_high="Scale the inputs, lower the learning rate, or start with smaller weights.",
    floor=0.5,
    rank=35,
    percent=True,
    typical=lambda numbers: (None, 0.5),
    words=("", "SATURATED"),
)
def saturation(numbers: LayerNumbers) -> RuleSeries:
    """Share of saturated units, or of saturated gate activations averaged over gates, per recording."""
    try:
        found = numbers.get("saturated_units")
    except NotRecorded:
        low, high = numbers.get("gate_low"), numbers.get("gate_high")
        steps = np.intersect1d(low.steps, high.steps)
        rows = [s.values[np.isin(s.steps, steps)].reshape(len(steps), -1) for s in (low, high)]
        return RuleSeries(steps, np.nanmean(rows[0] + rows[1], axis=1))
    return RuleSeries(found.steps, found.values.reshape(len(found.steps)))
