"""Rule: change of the spectral radius since the first recording."""

from __future__ import annotations

import numpy as np

from rnndiag.health.numbers import LayerNumbers, NotRecorded, RunNumbers
from rnndiag.health.rule import RuleSeries, rule
from rnndiag.health.rules.spectral_radius import spectral_radius


def _typical(numbers: LayerNumbers) -> tuple[float | None, float | None]:
    """Typical range; growth is no fault while the recurrence is stable: λ_1 <= 0, or gates where λ_1 is unknown."""
    try:
        exponents = numbers.ever("lyapunov_exponents").pick("part_stat", "value").values
        stable = bool(np.all(exponents.reshape(len(exponents), -1)[-1, 0] <= 0))
    except NotRecorded:
        blocks = numbers.get("spectral_radius").values
        stable = blocks.reshape(len(blocks), -1).shape[1] > 1
    return 0.5, None if stable else 2.0


@rule(
    "spectral_drift",
    meaning="ρ(W_hh) as a multiple of the first recording's",
    statement="ρ(W_hh) is {value} times what it was at the first recording",
    too_low="Training or weight decay shrinks the recurrence: exempt W_hh from weight decay.",
    too_high="Training blows the recurrence up: lower the learning rate, clip the gradient norm, or decay W_hh.",
    rank=42,
    unit="x",
    of_weights=True,
    comparable=False,
    typical=_typical,
    words=("SHRINKING RECURRENCE", "GROWING RECURRENCE"),
)
def spectral_drift(numbers: LayerNumbers) -> RuleSeries:
    """ρ(W_hh) over that of the first recording, per later recording."""
    here = spectral_radius.measure(numbers)
    run = numbers.whole
    later = here.steps > run.all_steps[0]
    if not later.any():
        raise NotRecorded("the spectral radius was not measured after the first recording")
    first = spectral_radius.measure(
        RunNumbers(run.run, run.all_steps[:1]).of(numbers.layer)
    ).values[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return RuleSeries(here.steps[later], here.values[later] / first)
