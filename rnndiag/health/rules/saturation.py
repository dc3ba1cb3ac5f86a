"""Units whose activation has gone flat, so that no gradient passes."""

from __future__ import annotations

from rnndiag.health.numbers import LayerNumbers
from rnndiag.health.rule import Series, rule


@rule(
    "saturation",
    meaning="share of units whose activation derivative stays below 0.05",
    statement="{percent} of the units are saturated",
    too_low="",
    too_high="Scale the inputs, lower the learning rate, or start with smaller weights.",
    floor=0.5,
    rank=35,
    percent=True,
    typical=lambda numbers: (None, 0.5),
    words=("", "SATURATED"),
)
def saturation(numbers: LayerNumbers) -> Series:
    """The share of saturated units of each recording."""
    found = numbers.get("saturated_units")
    return Series(found.steps, found.values.reshape(len(found.steps)))
