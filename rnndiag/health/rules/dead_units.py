"""Rule: relu units that are zero for every input, which cannot learn any more."""

from __future__ import annotations

from rnndiag.health.bounds import Bounds
from rnndiag.health.numbers import LayerNumbers
from rnndiag.health.rule import RuleSeries, rule


@rule(
    "dead_units",
    meaning="share of relu units that are zero at every step of every sequence",
    statement="{percent} of the units are dead",
    too_high="Lower the learning rate, start with W_hh as the identity and small biases, or use tanh.",
    floor=0.5,
    rank=10,
    percent=True,
    defaults=Bounds(max=0.5),
    words=("", "DEAD UNITS"),
)
def dead_units(numbers: LayerNumbers) -> RuleSeries:
    """Share of dead units, per recording."""
    found = numbers.get("dead_units")
    return RuleSeries(found.steps, found.values.reshape(len(found.steps)))
