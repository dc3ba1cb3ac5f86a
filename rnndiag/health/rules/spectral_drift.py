"""How far the spectral radius has moved since the first recording."""

from __future__ import annotations

import numpy as np

from rnndiag.health.numbers import LayerNumbers, RunNumbers
from rnndiag.health.rule import Series, rule
from rnndiag.health.rules.spectral_radius import spectral_radius


@rule(
    "spectral_drift",
    meaning="ρ(W_hh) as a multiple of the first recording's",
    statement="ρ(W_hh) is {value} times what it was at the first recording",
    too_low="Training or weight decay shrinks the recurrence: exempt W_hh from weight decay.",
    too_high="Training blows the recurrence up: lower the learning rate, clip the gradient norm, or decay W_hh.",
    rank=42,
    unit="x",
    digits=3,
    comparable=False,
    typical=lambda numbers: (0.5, 2.0),
    words=("SHRINKING RECURRENCE", "GROWING RECURRENCE"),
)
def spectral_drift(numbers: LayerNumbers) -> Series:
    """ρ(W_hh) of each recording over that of the first."""
    here = spectral_radius.measure(numbers)
    run = numbers.whole
    first = spectral_radius.measure(
        RunNumbers(run.run, run.all_steps[:1]).of(numbers.layer)
    ).values[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return Series(here.steps, here.values / first)
