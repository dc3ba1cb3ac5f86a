"""Rule: the largest Lyapunov exponent, positive if nearby states diverge."""

from __future__ import annotations

from rnndiag.health.numbers import LayerNumbers
from rnndiag.health.rule import RuleSeries, rule


@rule(
    "lyapunov",
    meaning="λ_1, the largest Lyapunov exponent along the data",
    statement="nearby states change their distance by exp({value}) a step",
    too_low="The state forgets quickly: orthogonal W_hh or a larger forget bias.",
    too_high="The dynamics is chaotic along the data: scale W_hh down or lower the learning rate.",
    floor=0.1,
    rank=40,
    unit="per step",
    words=("", "CHAOTIC"),
    typical=lambda numbers: (None, 0.05),
)
def lyapunov(numbers: LayerNumbers) -> RuleSeries:
    """λ_1, at each recording that measured it."""
    found = numbers.get("lyapunov_exponents").pick("part_stat", "value")
    return RuleSeries(found.steps, found.values.reshape(len(found.steps), -1)[:, 0])
