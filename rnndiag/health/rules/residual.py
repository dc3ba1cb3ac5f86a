"""Rule: the proof that the recorded contributions add up to the gradient that autograd produced."""

from __future__ import annotations

import numpy as np

from rnndiag.health.bounds import Bounds
from rnndiag.health.finding import UNTRUSTED
from rnndiag.health.numbers import LayerNumbers, NotRecorded
from rnndiag.health.rule import RuleSeries, rule
from rnndiag.stats.over_recordings import nonfinite_counts

LIMIT = 1e-2


@rule(
    UNTRUSTED,
    meaning="|Σ_t g_t − G| / Σ_t |g_t|, the worst parameter",
    statement="the contributions add up to autograd's gradient to {value}",
    too_high="The recording is not to be trusted: see the reasons in the report, and record in float32 or float64 "
    "without compiled recurrent layers.",
    rank=2,
    digits=1,
    reduce="max",
    defaults=Bounds(max=LIMIT),
    words=("", "NOT TO BE TRUSTED"),
    comparable=False,
    violation="not_judged",
)
def residual(numbers: LayerNumbers) -> RuleSeries:
    """Largest residual over the parameters, per recording; non-finite states have no proof."""
    found = numbers.get("residual")
    flat = found.values.reshape(len(found.steps), -1)
    counts = nonfinite_counts(numbers.whole.run, numbers.layer) or {}
    finite = np.array([not counts.get(step) for step in found.steps.tolist()], dtype=bool)
    known = np.isfinite(flat).any(axis=1) | (finite & np.isposinf(flat).any(axis=1))
    if not known.any():
        raise NotRecorded(f"no recording of {numbers.layer} is finite, so none can be proved")
    usable = np.isfinite(flat) | (np.isposinf(flat) & finite[:, None])
    worst = np.max(np.where(usable, flat, -np.inf), axis=1)
    return RuleSeries(found.steps[known], worst[known])
