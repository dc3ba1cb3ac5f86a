"""Rule: a forget gate that is stuck shut, so that nothing is carried, or open, so that nothing is ever dropped."""

from __future__ import annotations

import numpy as np

from rnndiag.health.numbers import LayerNumbers
from rnndiag.health.rule import RuleSeries, rule


@rule(
    "forget_gate",
    meaning="mean activation of the forget gate",
    statement="the forget gate is at {value} on average",
    too_low="The gate is shut and the state is dropped at once: start with a forget bias of 1 to 2.",
    too_high="The gate is open and nothing is ever dropped: lower the forget bias, or reset the state.",
    rank=34,
    typical=lambda numbers: (0.1, 0.99),
    words=("FORGET GATE SHUT", "FORGET GATE OPEN"),
)
def forget_gate(numbers: LayerNumbers) -> RuleSeries:
    """Mean of the forget gate over units, samples and time, per recording."""
    found = numbers.get("gate_mean").pick("gate", "f")
    return RuleSeries(found.steps, np.nanmean(found.values.reshape(len(found.steps), -1), axis=1))
