"""Rule: single steps with a gradient far above the usual size."""

from __future__ import annotations

import numpy as np

from rnndiag.health.numbers import LayerNumbers, NotRecorded
from rnndiag.health.rule import RuleSeries, rule


@rule(
    "grad_spikes",
    meaning="largest over median gradient norm",
    statement="the largest gradient norm is {value} times the median",
    too_high="Clip the gradient norm a little above its usual size, and look at the sequences that cause the spikes.",
    rank=33,
    unit="x",
    digits=1,
    owner="model",
    reduce="max",
    typical=lambda numbers: (None, 20.0),
    words=("", "GRADIENT SPIKES"),
    comparable=False,
)
def grad_spikes(numbers: LayerNumbers) -> RuleSeries:
    """Largest gradient norm since the previous recording over the median of all norms, per recording."""
    try:
        found = numbers.get("history_gradient_norm")
    except NotRecorded:
        found = numbers.get("total_gradient_norm")
    flat = found.values.reshape(len(found.steps), -1)
    finite = np.isfinite(flat)
    if not finite.any():
        raise NotRecorded("no gradient norm is finite")
    median = float(np.median(flat[finite]))
    known = finite.any(axis=1)
    largest = np.max(np.where(finite, flat, -np.inf), axis=1)[known]
    with np.errstate(divide="ignore", invalid="ignore"):
        return RuleSeries(found.steps[known], largest / median)
