"""The proof: whether the recorded contributions add up to the gradient that autograd produced."""

from __future__ import annotations

import numpy as np

from rnndiag.health.bounds import Bounds
from rnndiag.health.finding import UNTRUSTED
from rnndiag.health.numbers import LayerNumbers, NotRecorded
from rnndiag.health.rule import RuleSeries, rule

LIMIT = 1e-2


@rule(
    UNTRUSTED,
    meaning="|Σ_t g_t − G| / Σ_t |g_t|, the worst parameter",
    statement="the contributions add up to autograd's gradient to {value}",
    too_low="",
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
    """The worst residual over the parameters of each recording that has one; what is not finite has no proof."""
    found = numbers.get("residual")
    flat = found.values.reshape(len(found.steps), -1)
    known = np.isfinite(flat).any(axis=1)
    if not known.any():
        raise NotRecorded(f"no recording of {numbers.layer} is finite, so none can be proved")
    worst = np.max(np.where(np.isfinite(flat[known]), flat[known], -np.inf), axis=1)
    return RuleSeries(found.steps[known], worst)
