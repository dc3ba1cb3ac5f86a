"""Evaluates one rule on one layer of a run: the number, its limits, since when it violates them, what else changed.

A number is judged only if it rests on enough values (`min_recordings`) within the check's window. Earlier values are
shown but not judged: otherwise a quantity that is no longer measured would pass forever.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rnndiag.errors import RunUnreadable
from rnndiag.health.bounds import EVERY_LAYER, Bounds
from rnndiag.health.config import Config
from rnndiag.health.finding import Finding, Status
from rnndiag.health.finding_text import allowed, moved, not_judged, sentence
from rnndiag.health.numbers import DoesNotApply, NotRecorded, RunNumbers
from rnndiag.health.rule import Rule, RuleSeries, all_rules
from rnndiag.stats.over_recordings import median
from rnndiag.stats.time_words import TimeWords
from rnndiag.store.layer_names import recurrence
from rnndiag.store.quantities import MODEL
from rnndiag.store.reader import StoredRun
from rnndiag.store.text import mapping

_MOST_MOVED = 2
"""Most other numbers that are named beside a failure because they moved at the same step."""

ADVICE = "advice"
"""Label of a detail with a recommendation where nothing is wrong; otherwise the advice is part of the remedy."""

UNFIT = (ValueError, IndexError, KeyError, TypeError, ArithmeticError, RunUnreadable)
"""Exceptions raised by arrays of inconsistent shapes: a damaged run must not end the check."""


class TooFewValues(NotRecorded):
    """The number was measured in too few of the judged recordings."""


class EndsEarly(TooFewValues):
    """The number stopped being measured before the end of the window."""


def ends_early(steps: np.ndarray, window: np.ndarray) -> bool:
    """Whether a quantity stopped being measured before its window ends.

    Costly quantities are measured only in every n-th recording. So the recordings after the last value are compared
    with the longest distance between two values (for a single value: its distance from the start); more than twice as
    many mean that it stopped.

    Args:
        steps: Steps (n,) of the recordings that hold a value, rising.
        window: Steps (N,) of all recordings of the window, rising.
    """
    places = np.searchsorted(window, steps)
    since_last = len(window) - 1 - int(places[-1])
    longest = int(np.max(np.diff(places))) if len(places) > 1 else int(places[0]) + 1
    return since_last > 2 * longest


@dataclass(frozen=True)
class RunEvaluator:
    """Evaluates the rules on one run under a configuration.

    Args:
        run: The run.
        config: The limits of every check.
    """

    run: StoredRun
    config: Config

    @cached_property
    def whole(self) -> RunNumbers:
        """The numbers of all recordings."""
        return RunNumbers(self.run)

    @cached_property
    def _time_words(self) -> TimeWords:
        return TimeWords.of_provenance(self.run.provenance)

    @cached_property
    def _scopes(self) -> dict[int, RunNumbers]:
        return {}

    def scope(self, bounds: Bounds) -> RunNumbers:
        """The numbers of the recordings in a check's window."""
        least = bounds.min_recordings or self.config.min_recordings
        count = len(self.run.judged(bounds.window or self.config.window, least))
        if count >= len(self.whole.all_steps):
            return self.whole
        if count not in self._scopes:
            self._scopes[count] = self.whole.last(count)
        return self._scopes[count]

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """All layers with a measurement, and those only in the provenance, of which nothing was measured."""
        measured = self.whole.layers
        known = {recurrence(layer) for layer in measured}
        names = [str(name) for name in mapping(self.run.provenance, "model", "layers")]
        if not known.intersection(map(recurrence, names)):
            return measured
        return (*measured, *(name for name in names if recurrence(name) not in known))

    def needed(self, rule: Rule, bounds: Bounds) -> int:
        """Number of values in the window that a check must rest on."""
        if bounds.min_recordings:
            return bounds.min_recordings
        return 1 if rule.of_weights else self.config.min_recordings

    def owners(self, rule: Rule) -> tuple[str, ...]:
        """What the number of a rule belongs to: every layer, the whole model, or both."""
        layers = self.layers if rule.owner != "model" else ()
        return (*layers, *((MODEL,) if rule.owner != "layer" else ()))

    def series(self, rule: Rule, layer: str, scope: RunNumbers) -> RuleSeries:
        """The rule's number at each recording of the scope.

        Raises:
            NotRecorded: None of them holds what the rule needs, or its arrays do not fit together.
        """
        try:
            found = rule.measure(scope.of(layer))
        except UNFIT as fault:
            raise NotRecorded(
                f"the arrays that {rule.name} needs do not fit together ({fault})"
            ) from fault
        if len(found.steps) == 0:
            raise NotRecorded(f"no judged recording holds what {rule.name} needs")
        return found

    def value(self, rule: Rule, layer: str) -> tuple[float, RuleSeries]:
        """The number that is compared, and the values in the check's window that it was computed from.

        Raises:
            NotRecorded: It was not measured in that window.
            TooFewValues: It was, in fewer recordings than the check needs.
        """
        bounds = self.config.bounds(rule.name)
        window = self.scope(bounds).steps
        found = self.series(rule, layer, self.scope(bounds))
        if rule.of_the_run:
            return reduced(rule, found.values), found
        needed = self.needed(rule, bounds)
        if found.count < needed:
            raise TooFewValues(
                f"{found.count} of the {len(window)} recordings in its window "
                f"({bounds.window or self.config.window}) hold a value, the check needs {needed}"
            )
        if found.rests_on is None and self._stopped(rule, layer, found, window):
            raise EndsEarly(
                f"it was measured last at step {int(found.steps[-1])}, and its window "
                f"({bounds.window or self.config.window}) ends at step {int(window[-1])}"
            )
        return reduced(rule, found.values), found

    def _stopped(self, rule: Rule, layer: str, found: RuleSeries, window: np.ndarray) -> bool:
        """Whether measuring stopped before the window ended, by the distances between values in the whole run."""
        if found.steps[-1] < window[0]:
            return True
        if not ends_early(found.steps, window):
            return False
        return ends_early(self.series(rule, layer, self.whole).steps, self.whole.all_steps)

    def stated(self, rule: Rule, layer: str) -> tuple[float, RuleSeries]:
        """The number shown in a statement, which is not judged, and the values that it was computed from.

        They lie in the check's window; if it has none, the last recording with a value is used.
        """
        scope = self.scope(self.config.bounds(rule.name))
        try:
            found = self.series(rule, layer, scope)
        except NotRecorded:
            if scope is self.whole:
                raise
            whole = self.series(rule, layer, self.whole)
            note = f"measured last at step {int(whole.steps[-1])}, before the judged recordings"
            found = RuleSeries(whole.steps[-1:], whole.values[-1:], note, whole.advice)
        return reduced(rule, found.values), found

    def findings(self, rule: Rule) -> list[Finding]:
        """One finding per layer that the rule applies to, with a number or with the reason why there is none."""
        bounds = self.config.bounds(rule.name)
        if bounds.level == "off":
            return []
        covered = [one for one in self.owners(rule) if bounds.covers(one) or one == MODEL]
        found: dict[str, Finding] = {}
        missing: dict[str, NotRecorded] = {}
        for layer in covered:
            try:
                found[layer] = self.finding(rule, layer, bounds)
            except NotRecorded as why:  # noqa: PERF203 - a few layers
                missing[layer] = why
        if not self.layers and not covered:
            return [not_judged(rule, "", _NO_LAYER, bounds)]
        unmatched = [
            not_judged(rule, "", f"no layer matches {pattern}", bounds)
            for pattern in (bounds.layers if bounds.layers != EVERY_LAYER else ())
            if not any(bounds.but(layers=(pattern,)).covers(layer) for layer in self.layers)
        ]
        judged = {recurrence(layer) for layer, one in found.items() if one.value is not None}
        unnumbered = []
        for layer, reason in missing.items():
            missed = not_judged(rule, layer, str(reason), bounds)
            if self._excused(rule, layer, reason, judged, bounds):
                missed = missed.but(status="note", remedy="")
            elif isinstance(reason, EndsEarly):
                missed = missed.but(status="not_judged", remedy=_ENDED)
            if missed.status != "note" or not found or bounds.bounded:
                unnumbered.append(missed)
        return [*found.values(), *unnumbered, *unmatched]

    def _excused(
        self, rule: Rule, layer: str, reason: NotRecorded, judged: set[str], bounds: Bounds
    ) -> bool:
        """Whether a layer without a number may be left out without hiding a check that the user configured.

        That is so for another call of a recurrence that was judged, if no gradient reaches this call or it did not run
        in every judged step, and for checks on layers and model whose number does not exist for a layer.
        """
        if layer != MODEL and recurrence(layer) in judged:
            return isinstance(reason, DoesNotApply) or not self._ran_throughout(rule, layer, bounds)
        if rule.owner == "both" and judged:
            return layer == MODEL or isinstance(reason, DoesNotApply)
        return False

    def _ran_throughout(self, rule: Rule, layer: str, bounds: Bounds) -> bool:
        """Whether enough recordings in the window hold anything of this layer, up to the end of the window."""
        window = self.scope(bounds).steps
        for quantity in self.run.quantities:
            if (quantity, layer) in self.run:
                found = self.run.find(quantity, layer, window.tolist())
                count = 0 if found is None else len(found.steps)
                if (
                    found is not None
                    and count >= self.needed(rule, bounds)
                    and not ends_early(found.steps, window)
                ):
                    return True
        return False

    def finding(self, rule: Rule, layer: str, bounds: Bounds) -> Finding:
        """The finding of one layer.

        Raises:
            NotRecorded: There is no number to judge.
        """
        if not bounds.bounded:
            value, series = self.stated(rule, layer)
            return self._finding(rule, layer, bounds, value, series)
        try:
            value, series = self.value(rule, layer)
        except TooFewValues:
            series = self.series(rule, layer, self.scope(bounds))
            value = reduced(rule, series.values)
            if not _is_certain(rule, bounds, series):
                raise
        if math.isnan(value):
            missing = int(np.sum(np.isnan(series.values)))
            raise NotRecorded(
                f"{rule.meaning}: not a number in {missing} of {len(series.values)} judged recordings"
            )
        if math.isinf(value) and bounds.min is not None and series.known_above < bounds.min:
            raise NotRecorded(
                f"it is known to lie above {series.known_above:g} only, and the limit is {bounds.min:g}"
            )
        return self._finding(rule, layer, bounds, value, series)

    def _finding(
        self, rule: Rule, layer: str, bounds: Bounds, value: float, series: RuleSeries
    ) -> Finding:
        numbers = self.scope(bounds).of(layer)
        side = bounds.side(value) if bounds.bounded else None
        low, high = self._typical(rule, layer, bounds)
        odd = None if math.isnan(value) else Bounds(min=low, max=high).side(value)
        shown = side or odd
        status: Status = "note" if not bounds.bounded else "pass"
        if side:
            status = rule.violation if bounds.level == "fail" else "warn"
        words = self._time_words
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

    def _typical(self, rule: Rule, layer: str, bounds: Bounds) -> tuple[float | None, float | None]:
        try:
            return rule.typical(self.scope(bounds).of(layer))
        except (NotRecorded, *UNFIT):
            return None, None

    def explained(self, rule: Rule, finding: Finding, bounds: Bounds) -> Finding:
        """The finding, completed by since when it holds, the value before, and what else moved then."""
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

    def moved_with(self, rule: Rule, layer: str, since: int) -> Iterator[str]:
        """Other numbers of the same layer that moved at step `since`, in the order of rules."""
        count = 0
        for other in all_rules().values():
            same = other.name == rule.name or (rule.family and other.family == rule.family)
            if same or not other.comparable or count >= _MOST_MOVED:
                continue
            if layer not in self.owners(other):
                continue
            try:
                line = moved(other, self.series(other, layer, self.whole), since)
            except NotRecorded:
                continue
            if line:
                count += 1
                yield f"also {other.name} of {layer} {line}"


def reduced(rule: Rule, values: np.ndarray) -> float:
    """One number for the judged recordings; their median ignores a few recordings without a number, but not most."""
    if rule.reduce == "last":
        return float(values[-1])
    known = values[~np.isnan(values)]
    if len(known) == 0 or (rule.reduce == "median" and 2 * len(known) <= len(values)):
        return math.nan
    if rule.reduce == "max":
        return float(np.max(known))
    return float(np.mean(known)) if rule.reduce == "mean" else median(known)


_NO_LAYER = "the recordings hold no measurement of a recurrent layer"
_ENDED = "See what the recorder could not do any more: rnndiag show RUN; fit once with strict=True to raise it."


def _is_certain(rule: Rule, bounds: Bounds, series: RuleSeries) -> bool:
    """Whether a violation is certain although there are too few values for a pass.

    A number that no recording may exceed is violated by one. A default limit is violated if all values lie outside; a
    limit that the user set is then not judged.
    """
    known = series.values[~np.isnan(series.values)]
    outside = [bounds.side(float(value)) is not None for value in known]
    if rule.reduce == "max":
        return any(outside)
    return bool(outside) and all(outside) and not bounds.configured
