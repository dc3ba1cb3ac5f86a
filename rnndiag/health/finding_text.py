"""The parts of a finding's text: the allowed range, the sentence on a value, and how a number moved."""

from __future__ import annotations

import math

import numpy as np

from rnndiag.health.bounds import Bounds
from rnndiag.health.finding import Finding
from rnndiag.health.rule import Rule, RuleSeries
from rnndiag.stats.over_recordings import median


def allowed(rule: Rule, bounds: Bounds) -> str:
    """The allowed range as text, in the rule's own digits."""
    scale, sign = (100, " %") if rule.percent else (1, "")
    low, high = (
        "" if limit is None else f"{scale * limit:g}{sign}" for limit in (bounds.min, bounds.max)
    )
    if low and high:
        return f"{low} to {high}"
    if high:
        return f"at most {high}"
    return f"at least {low}" if low else ""


def sentence(rule: Rule, value: float, layer: str, time_steps: int | None) -> str:
    """The rule's statement about this value, or, for NaN, a sentence that there is no number."""
    if math.isnan(value):
        return f"{rule.meaning}: not a number in most of the judged recordings"
    text = rule.infinite if math.isinf(value) and rule.infinite else rule.statement
    return text.format(
        value=rule.format(value),
        ceil="all" if math.isinf(value) else f"{math.ceil(value - 1e-9)}",
        T="?" if time_steps is None else time_steps,
        percent=f"{100 * value:.1f} %",
        layer=layer,
    )


def not_judged(rule: Rule, layer: str, why: str, bounds: Bounds) -> Finding:
    """The finding for a check without a number: a fault if the user configured the check, else a note."""
    return Finding(
        check=rule.name,
        status="not_judged" if bounds.configured else "note",
        layer=layer,
        allowed=allowed(rule, bounds),
        message=f"not judged: {why}",
        remedy="Record it (measures=) or take the check out of the configuration."
        if bounds.configured
        else "",
    )


def moved(rule: Rule, series: RuleSeries, since: int) -> str:
    """`fell 0.99 -> 0.81, steps 320-360` if the number moved well beyond its earlier spread, else empty."""
    before, after = series.values[series.steps < since], series.values[series.steps >= since]
    if len(before) < 2 or len(after) < 1 or not np.isfinite(np.concatenate([before, after])).all():
        return ""
    old, new = median(before), median(after)
    spread = 1.4826 * median(np.abs(before - old))
    if abs(new - old) <= max(5 * spread, 0.05 * abs(old), 1e-12):
        return ""
    share = (series.values - old) / (new - old)
    ended = series.steps[(share >= 0.9)]
    started = series.steps[(share < 0.1)]
    first = int(started[-1]) if len(started) else int(series.steps[0])
    last = int(ended[0]) if len(ended) else int(series.steps[-1])
    verb = "fell" if new < old else "rose"
    span = f"step {last}" if first >= last else f"steps {first}-{last}"
    return f"{verb} {rule.format(old)} -> {rule.format(new)}, {span}"
