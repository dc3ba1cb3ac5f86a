"""Rule: the cost of the diagnostics themselves."""

from __future__ import annotations

from rnndiag.health.numbers import LayerNumbers
from rnndiag.health.rule import RuleSeries, rule


@rule(
    "overhead",
    meaning="time of the diagnostics as a share of training time",
    statement="diagnostics took {percent} of training time",
    too_high="Record more rarely (every_n_steps, budget) or fewer groups (measures).",
    rank=90,
    percent=True,
    owner="model",
    reduce="last",
    typical=lambda numbers: (None, 0.10),
    comparable=False,
)
def overhead(numbers: LayerNumbers) -> RuleSeries:
    """Share of training time spent so far, at each recording."""
    found = numbers.get("overhead_share")
    return RuleSeries(found.steps, found.values.reshape(len(found.steps)))
