"""Rule: how often clipping is active, which distinguishes a safety net from a limit on every step."""

from __future__ import annotations

import numpy as np

from rnndiag.health.numbers import LayerNumbers, NotRecorded
from rnndiag.health.rule import RuleSeries, rule


@rule(
    "clip_share",
    meaning="share of training steps whose gradient was clipped",
    statement="the gradient was clipped in {percent} of the steps",
    too_high="Clipping limits nearly every step and sets the learning rate in disguise: raise the threshold, "
    "or lower the learning rate and keep clipping as a safety net.",
    floor=0.5,
    rank=32,
    percent=True,
    owner="model",
    reduce="mean",
    typical=lambda numbers: (None, 0.5),
    words=("", "CLIPPED NEARLY ALWAYS"),
)
def clip_share(numbers: LayerNumbers) -> RuleSeries:
    """Share of clipped steps since the previous recording, per recording."""
    try:
        found = numbers.get("history_clipped")
    except NotRecorded:
        norm, limit = numbers.get("total_gradient_norm"), numbers.get("clip_threshold")
        steps = np.intersect1d(norm.steps, limit.steps)
        one = norm.values[np.isin(norm.steps, steps)].reshape(len(steps))
        other = limit.values[np.isin(limit.steps, steps)].reshape(len(steps))
        known = np.isfinite(one) & np.isfinite(other)
        if not known.any():
            raise NotRecorded("gradients are not clipped") from None
        return RuleSeries(steps[known], (one[known] > other[known]).astype(float))
    values = found.values.reshape(len(found.steps), -1)
    known = np.isfinite(values).any(axis=1)
    if not known.any():
        raise NotRecorded("gradients are not clipped")
    return RuleSeries(found.steps[known], np.nanmean(values[known], axis=1))
