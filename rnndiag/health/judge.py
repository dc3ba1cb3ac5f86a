"""Holds one rule's number of one layer against its bounds: the finding, since when, and what else moved at the time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rnndiag.health.bounds import EVERY_LAYER, Bounds
from rnndiag.health.config import Config
from rnndiag.health.finding import Finding, Status
from rnndiag.health.numbers import NotRecorded, RunNumbers
from rnndiag.health.rule import Rule, RuleSeries, all_rules
from rnndiag.stats.time_words import TimeWords
from rnndiag.store.quantities import MODEL
from rnndiag.store.reader import StoredRun

_WORDS_OF_CAUSE = 2
ADVICE = "advice"
"""The label of a detail that says what would do instead, where nothing is wrong; else it is part of the remedy."""


@dataclass(frozen=True)
class Judge:
    """One run with what is allowed of it."""

    run: StoredRun
    config: Config

    @cached_property
    def whole(self) -> RunNumbers:
        """The numbers of all recordings."""
        return RunNumbers(self.run)

    @cached_property
    def _scopes(self) -> dict[int, RunNumbers]:
        return {}

    def scope(self, bounds: Bounds) -> RunNumbers:
        """The numbers of the recordings that a check judges."""
        count = len(
            self.run.judged(bounds.window or self.config.window, self.config.min_recordings)
        )
        if count >= len(self.whole.all_steps):
            return self.whole
        if count not in self._scopes:
            self._scopes[count] = self.whole.last(count)
        return self._scopes[count]

    def owners(self, rule: Rule) -> Iterable[str]:
        """Whose number a rule is: every layer, the whole model, or both."""
        layers = self.whole.layers if rule.owner != "model" else ()
        return (*layers, *((MODEL,) if rule.owner != "layer" else ()))

    def series(self, rule: Rule, layer: str, scope: RunNumbers) -> RuleSeries:
        """The rule's number of each recording in the scope; raises NotRecorded."""
        found = rule.measure(scope.of(layer))
        if len(found.steps) == 0:
            raise NotRecorded(f"no judged recording holds what {rule.name} needs")
        return found

    def value(self, rule: Rule, layer: str) -> tuple[float, RuleSeries]:
        """The number that is judged, and the recordings it comes from.

        What is measured on few recordings only, and on none of the judged ones, is judged by the last that has it.
        """
        scope = self.scope(self.config.bounds(rule.name))
        try:
            series = self.series(rule, layer, scope)
        except NotRecorded:
            if scope is self.whole:
                raise
            whole = self.series(rule, layer, self.whole)
            note = f"measured last at step {int(whole.steps[-1])}, before the judged recordings"
            series = RuleSeries(whole.steps[-1:], whole.values[-1:], note, whole.advice)
        return reduced(rule, series.values), series

    def findings(self, rule: Rule) -> list[Finding]:
        """One finding a layer, or one that says why there is none."""
        bounds = self.config.bounds(rule.name)
        if bounds.level == "off":
            return []
        found, missing = [], []
        for layer in self.owners(rule):
            covered = bounds.covers(layer) or layer == MODEL
            if not covered:
                continue
            try:
                found.append(self.finding(rule, layer, bounds))
            except NotRecorded as reason:
                missing.append((layer, str(reason)))
        named = bounds.configured and bounds.layers != EVERY_LAYER
        if found and not (named and rule.owner == "layer"):
            return found
        return found + [not_judged(rule, layer, why, bounds) for layer, why in missing] or [
            not_judged(rule, "", f"no layer matches {', '.join(bounds.layers)}", bounds)
        ]

    def finding(self, rule: Rule, layer: str, bounds: Bounds) -> Finding:
        """The finding of one layer; raises NotRecorded."""
        value, series = self.value(rule, layer)
        numbers = self.scope(bounds).of(layer)
        side = bounds.side(value) if bounds.bounded else None
        low, high = rule.typical(numbers)
        odd = Bounds(min=low, max=high).side(value)
        shown = side or odd
        status: Status = "note" if not bounds.bounded else "pass"
        if side:
            status = rule.violation if bounds.level == "fail" else "warn"
        words = TimeWords.of_provenance(self.run.provenance)
        remedy = ""
        if shown:
            remedy = rule.too_low if shown == "low" else rule.too_high
            if shown == "low" and rule.causes:
                remedy = rule.causes.get(numbers.cause, remedy)
            remedy = f"{remedy} {series.advice}".strip()
        finding = Finding(
            check=rule.name,
            status=status,
            layer=layer,
            value=value,
            text_value=rule.text(value, bounds),
            allowed=allowed(rule, bounds),
            message=sentence(rule, value, layer, numbers.time_steps)
            + (words.in_brackets(value) if rule.unit == "steps" and math.isfinite(value) else "")
            + (f"; {rule.excuse}" if rule.excuse and not side and not math.isnan(value) else ""),
            remedy=remedy,
            notable=bool(odd),
            word=(rule.words[0] if shown == "low" else rule.words[1]) if shown else "",
            run=self.run.name,
            details=tuple(
                f"{label} {text}"
                for label, text in (("note", series.note), (ADVICE, series.advice))
                if text and not (label == ADVICE and shown)
            ),
        )
        return self.explained(rule, finding, bounds) if side else finding

    def explained(self, rule: Rule, finding: Finding, bounds: Bounds) -> Finding:
        """The finding with since when it holds, what was before, and what else moved then."""
        try:
            whole = self.series(rule, finding.layer, self.whole)
        except NotRecorded:
            return finding
        bad = np.array([bounds.side(float(value)) is not None for value in whole.values])
        if rule.reduce == "max" and bad.any():
            first = int(np.argmax(bad))
        else:
            first = int(len(bad) - np.argmin(bad[::-1])) if not bad.all() else 0
        if first >= len(bad):
            return finding
        since = int(whole.steps[first])
        before = whole.values[:first]
        line = f"since step {since}"
        if len(before) == 0:
            line += ", the first recording"
        elif np.isfinite(before).all():
            low, high = rule.format(float(before.min())), rule.format(float(before.max()))
            line += f", before that {low}" + (f" to {high}" if low != high else "")
        also = tuple(self.moved_with(rule, finding.layer, since)) if len(before) else ()
        return finding.but(since_step=since, details=(line, *also, *finding.details))

    def moved_with(self, rule: Rule, layer: str, since: int) -> Iterable[str]:
        """Other numbers of the same layer that moved at that step, in the order in which faults are told."""
        told = 0
        for other in all_rules().values():
            same = other.name == rule.name or (rule.family and other.family == rule.family)
            if same or not other.comparable or told >= _WORDS_OF_CAUSE:
                continue
            if layer not in self.owners(other):
                continue
            try:
                line = moved(other, self.series(other, layer, self.whole), since)
            except NotRecorded:
                continue
            if line:
                told += 1
                yield f"also {other.name} of {layer} {line}"


def reduced(rule: Rule, values: np.ndarray) -> float:
    """One number of the judged recordings; the median leaves out a few recordings without a number, not most."""
    if rule.reduce == "last":
        return float(values[-1])
    known = values[~np.isnan(values)]
    if len(known) == 0 or (rule.reduce == "median" and 2 * len(known) <= len(values)):
        return math.nan
    if rule.reduce == "max":
        return float(np.max(known))
    return float(np.mean(known)) if rule.reduce == "mean" else _median(known)


def _median(values: np.ndarray) -> float:
    ordered = np.sort(values)
    low, high = float(ordered[(len(ordered) - 1) // 2]), float(ordered[len(ordered) // 2])
    return low if low == high else 0.5 * (low + high)


def allowed(rule: Rule, bounds: Bounds) -> str:
    """What would pass, in the rule's own digits."""
    low = None if bounds.min is None else _limit(rule, bounds.min)
    high = None if bounds.max is None else _limit(rule, bounds.max)
    if low is not None and high is not None:
        return f"{low} to {high}"
    if high is not None:
        return f"at most {high}"
    return "" if low is None else f"at least {low}"


def _limit(rule: Rule, bound: float) -> str:
    if rule.percent:
        return f"{100 * bound:g} %"
    return f"{bound:g}"


def sentence(rule: Rule, value: float, layer: str, time_steps: int | None) -> str:
    """What is so, as the rule says it of this value."""
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
    """A check without a number: a fault where a person asked for it, else only said."""
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
    """`fell 0.99 -> 0.81, steps 320-360` where the number moved well beyond its spread there, else nothing."""
    before, after = series.values[series.steps < since], series.values[series.steps >= since]
    if len(before) < 2 or len(after) < 1 or not np.isfinite(np.concatenate([before, after])).all():
        return ""
    old, new = _median(before), _median(after)
    spread = 1.4826 * _median(np.abs(before - old))
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
