"""Evaluates every rule on one or several runs, and compares them with a baseline; returns a list of findings.

Absolute limits and structural findings are judged first, independently of the baseline. What could not be judged is a
finding of its own and never a pass.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from rnndiag.errors import CannotJudge, RnndiagError, RunUnreadable
from rnndiag.health.baseline import Baseline, measure, read_baseline
from rnndiag.health.change import Comparison, compare
from rnndiag.health.config import Config, read_config
from rnndiag.health.diagnosis.finding import diagnosis_finding
from rnndiag.health.evaluate import UNFIT, RunEvaluator
from rnndiag.health.finding import OF_THE_RUN, UNTRUSTED, Finding
from rnndiag.health.fingerprint import differences, fingerprint
from rnndiag.health.numbers import NotRecorded
from rnndiag.health.recorder_findings import (
    COVERAGE,
    coverage_findings,
    preflight_findings,
    proof_findings,
)
from rnndiag.health.rule import Rule, all_rules
from rnndiag.store.reader import StoredRun

AGAINST = " vs base"
"""Suffix of the name of a check that is compared with the baseline."""

BASELINE, SEEDS = "baseline", "seeds"
"""Names of the findings on whether runs are comparable: with the baseline, and with each other."""

RunLike = StoredRun | str | Path


@np.errstate(all="ignore")  # checks must find numbers that are not finite, without numpy warnings
def check(
    run: RunLike | Sequence[RunLike],
    baseline: Baseline | RunLike | None = None,
    config: Config | str | Path | Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Judge a run, or several runs (seeds) of one program together.

    Args:
        run: A run or its directory, or several.
        baseline: A file that `rnndiag baseline` wrote, or another run.
        config: A pyproject.toml, the content of its table [tool.rnndiag] as a dict, or None for the defaults, under
            which only what is a fault in any training fails.

    Returns:
        Findings of every check. One with the status `not_judged` says what could not be judged and why; the list as a
        whole passes only where `rnndiag.health.exit_code` gives 0.

    Raises:
        CannotJudge: The run is too short, nothing could be checked, or the baseline cannot be read; not raised if
            a check has failed, which is the more important answer.

    Example:
        >>> failed = [one for one in rnndiag.check("runs/exp1") if one.status == "fail"]
    """
    settings = read_config(config)
    runs = open_all(run)
    evaluators = [RunEvaluator(one, settings) for one in runs]
    found = findings([of for of in evaluators if len(of.run.steps)])
    failed = any(one.status == "fail" for one in found)
    try:
        for one in runs:
            require_enough(one, settings)
        against = baseline_of(settings.baseline if baseline is None else baseline, settings)
    except (CannotJudge, RunUnreadable) as reason:
        if not failed:
            raise
        return [*found, gate_finding(reason)]
    apart = [*_different_programs(evaluators), *_not_comparable(evaluators, against)]
    found += apart
    if against is not None and not apart:
        found += against_baseline(evaluators, against)
    found += _without_a_limit(settings, compared=against is not None)
    asked = [one for one in found if one.check not in {*OF_THE_RUN, COVERAGE}]
    nothing = not any(one.judged or one.status == "not_judged" for one in asked)
    if nothing and any(of.layers for of in evaluators):
        raise CannotJudge(
            f"Nothing was checked in {', '.join(one.name for one in runs)}: none of the checks has its numbers.",
            "Record the groups that the checks need (measures=), or configure other checks.",
        )
    return found


@np.errstate(all="ignore")
def look(
    run: RunLike, config: Config | str | Path | Mapping[str, Any] | None = None
) -> list[Finding]:
    """The findings of one run of any length, as a report shows them. Not meant as the verdict of a gate."""
    return findings([RunEvaluator(open_all(run)[0], read_config(config))])


def findings(evaluators: Sequence[RunEvaluator]) -> list[Finding]:
    """The findings of all rules and of the recorder itself; of several runs the worst per check and layer."""
    each = [_of_one(of) for of in evaluators]
    return (each[0] if len(each) == 1 else worst_of_runs(each)) if each else []


def _of_one(of: RunEvaluator) -> list[Finding]:
    found = [*proof_findings(of), *(f for rule in all_rules().values() for f in of.findings(rule))]
    found = [*diagnosis_findings(of.run, of.config), *found]
    return [*found, *coverage_findings(of, found), *preflight_findings(of.run)]


def _without_a_limit(config: Config, compared: bool) -> Iterator[Finding]:
    """A finding for each configured check that has neither a bound nor a baseline to be compared with."""
    for name, bounds in config.checks.items():
        changes = compared and all_rules()[name].comparable and bounds.change != "off"
        if bounds.configured and not bounds.bounded and not changes and bounds.level != "off":
            yield Finding(
                name,
                "not_judged",
                message=f"not judged: {config.source} sets neither min nor max, and no baseline is compared",
                remedy=f'Set min or max in [tool.rnndiag.checks.{name}], name a baseline, or set level = "off".',
            )


def gate_finding(reason: RnndiagError) -> Finding:
    """A finding that says why the checks, or those that did not fail already, could not be judged."""
    text = " ".join(line.strip() for line in reason.what.splitlines())
    return Finding("gate", "not_judged", message=text, remedy=reason.remedy, word="CANNOT JUDGE")


def _different_programs(evaluators: Sequence[RunEvaluator]) -> Iterator[Finding]:
    """Seeds must be runs of one program: a finding for each run whose fingerprint differs from the first."""
    first = evaluators[0]
    for other in evaluators[1:]:
        apart = differences(fingerprint(first.run), fingerprint(other.run))
        for name, old, new in apart[:1]:
            yield Finding(
                SEEDS,
                "not_judged",
                message=f"{first.run.name} and {other.run.name} are not seeds of one program: "
                f"{name} is {old!r} and {new!r}",
                remedy="Check runs of different programs one by one.",
                run=other.run.name,
            )


def _not_comparable(
    evaluators: Sequence[RunEvaluator], baseline: Baseline | None
) -> Iterator[Finding]:
    """A finding for each run whose fingerprint differs from the baseline's, with the name of the field."""
    for of in evaluators if baseline is not None else ():
        assert baseline is not None
        apart = differences(baseline.fingerprint, fingerprint(of.run), of.config.comparable_across)
        if not apart:
            continue
        name, old, new = apart[0]
        more = f"; {len(apart) - 1} more fields differ" if len(apart) > 1 else ""
        yield Finding(
            BASELINE,
            "not_judged",
            message=f"cannot compare {of.run.path} with {baseline.source}: {name} is {new!r}, "
            f"the baseline has {old!r}{more}",
            remedy=_what_changed(name)
            + f' If the change was meant: comparable_across = ["{name}"] in [tool.rnndiag] allows it, and '
            "`rnndiag baseline` stores the new numbers.",
            word="NOT COMPARABLE",
            run=of.run.name,
        )


def _what_changed(name: str) -> str:
    """Hint on where to look first if a field of the fingerprint differs."""
    field = name.partition(".")[0]
    return {
        "T": "Look for what made the sequences, or the stretch between two detached states, shorter or longer.",
        "window": "Look for a detach() or a state that is no longer passed on: the gradient covers another window.",
        "layers": "Look for what changed in the model's recurrent layers, or split them into other calls.",
        "dtype": "Look for another `precision` of the Trainer.",
        "versions": "Look at what the other version changed.",
    }.get(field, "Look for what changed in the program.")


def diagnosis_findings(run: StoredRun, config: Config) -> list[Finding]:
    """The diagnosis of a run as a note; a failure if its state is one of the configured states that fail."""
    try:
        found = diagnosis_finding(run, config.fail_states, config.chance, config.needs)
    except UNFIT as fault:
        why = f"the arrays that the diagnosis needs do not fit together ({fault})"
        return [Finding("diagnosis", "not_judged", message=why, run=run.name)]
    return [] if found is None else [found]


def worst_of_runs(each: Sequence[Sequence[Finding]]) -> list[Finding]:
    """For each check and layer the worst finding of several runs, with the numbers of all runs."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for one in each:
        for finding in one:
            groups.setdefault((finding.check, finding.layer), []).append(finding)
    merged = []
    for group in groups.values():
        shown = min(group, key=lambda finding: finding.severity)
        numbers = ", ".join(f"{f.run} {f.text_value}" for f in group if f.text_value)
        merged.append(
            shown.but(details=(*shown.details, f"note seeds: {numbers}")) if numbers else shown
        )
    return merged


def against_baseline(evaluators: Sequence[RunEvaluator], baseline: Baseline) -> list[Finding]:
    """One finding per comparable check and layer of the run or the baseline; a single one if they share none."""
    config = evaluators[0].config
    found = []
    for rule in all_rules().values():
        bounds = config.bounds(rule.name)
        if not rule.comparable or bounds.change == "off" or bounds.level == "off":
            continue
        own = evaluators[0].owners(rule)
        layers = [one for one in (*own, *baseline.values.get(rule.name, {})) if bounds.covers(one)]
        layers = list(dict.fromkeys(layers))
        found += [
            one
            for layer in layers
            if (one := _compared(rule, layer, evaluators, baseline, len(layers)))
        ]
    if not any(one.status in ("pass", "fail", "warn") for one in found):
        found.append(
            Finding(
                BASELINE,
                "not_judged",
                message=f"the baseline {baseline.source} and the run share no check that both have numbers for",
                remedy="Record the same groups as the baseline's runs (measures=), or name the right baseline.",
                word="NOT COMPARABLE",
            )
        )
    return found


def _compared(
    rule: Rule, layer: str, evaluators: Sequence[RunEvaluator], baseline: Baseline, family: int
) -> Finding | None:
    """The number of one layer against the baseline's; None if there is nothing to compare."""
    config = evaluators[0].config
    bounds = config.bounds(rule.name)
    old = baseline.values.get(rule.name, {}).get(layer)

    def not_judged(message: str, remedy: str) -> Finding:
        return Finding(rule.name + AGAINST, "not_judged", layer, message=message, remedy=remedy)

    try:
        new = [of.value(rule, layer)[0] for of in evaluators]
    except NotRecorded as reason:
        if old is None:
            return None
        return not_judged(
            f"the baseline has it, the run does not: {reason}",
            "Record the same groups as the baseline's runs (measures=).",
        )
    if old is None:
        if not bounds.configured:
            return None
        return not_judged(
            f"the baseline has no {rule.name} of {layer}",
            "Name a baseline whose runs recorded it.",
        )
    if any(math.isnan(value) for value in new):
        return not_judged(
            f"{rule.name} is not a number in most of the judged recordings",
            "The check `nonfinite` and the report name the steps.",
        )
    result = compare(
        old, new, bounds, config.false_alarm / family, config.min_baseline_runs, rule.floor
    )
    before, after = sum(old) / len(old), sum(new) / len(new)
    finding = Finding(
        check=rule.name + AGAINST,
        status="pass",
        layer=layer,
        value=result.change,
        text_value=_percent(result.change, result.tolerance),
        allowed=_allowed_change(result),
        message=f"{rule.name} went from {rule.text(before, bounds)} to {rule.text(after, bounds)}",
        change=result.word,
        baseline=rule.format(before),
        run=evaluators[0].run.name,
    )
    if not result.failed:
        return finding
    return finding.but(
        status="fail" if bounds.level == "fail" else "warn",
        remedy="Look for the commit that did it, or accept it as the new baseline.",
        word="CHANGED",
    )


def _allowed_change(result: Comparison) -> str:
    how = "noise" if result.noise_known else "the allowed change"
    side = "outside" if result.failed else "within"
    return f"{side} {how} (shift over {100 * result.tolerance:.3g} % fails)"


def _percent(change: float, tolerance: float) -> str:
    """The change in %, with enough digits to differ from the tolerance."""
    for digits in range(1, 12):
        shown = f"{100 * change:+.{digits}f}"
        if abs(float(shown)) != 100 * tolerance:
            break
    return f"{shown} %"


def open_all(run: RunLike | Sequence[RunLike]) -> list[StoredRun]:
    """The runs; paths are opened."""
    several = [run] if isinstance(run, StoredRun | str | Path) else list(run)
    if not several:
        raise CannotJudge("No run was given.", "Name at least one run directory.")
    return [one if isinstance(one, StoredRun) else StoredRun(one) for one in several]


def require_enough(run: StoredRun, config: Config) -> None:
    """Raise if a run has fewer recordings than the checks need: a check that did not run must not count as a pass."""
    main = run.phases[0] if run.phases else ""
    outlines = [outline for outline in run.outlines if outline.phase == main]
    count = sum(math.isfinite(outline.time) for outline in outlines)
    if count >= config.min_recordings:
        return
    of = f" of {len(outlines)}" if len(outlines) > count else ""
    readable = f"{count}{of} recording{' is' if count == 1 and not of else 's are'} readable"
    raise CannotJudge(
        f"cannot judge {run.path}: the recording ends early\n"
        f"  {readable}, the checks need {config.min_recordings} (min_recordings).\n"
        f"  {_ended(run)}\n"
        "  Nothing was checked, so this is not a pass.",
        f"Judge what is there:  rnndiag check {run.path} --min-recordings {count}" if count else "",
    )


def _ended(run: StoredRun) -> str:
    """One sentence on how the recording ended."""
    status = run.status
    if status.word == "finished":
        reason = f" ({status.reason})" if status.reason else ""
        return f"The training closed it{reason}: record more often, or train longer."
    written = datetime.fromtimestamp(status.last, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    why = (
        "The training is still running"
        if status.word == "running"
        else "The training was probably stopped"
    )
    return f"{why}: last written {written}."


def require_sound(run: StoredRun, config: Config) -> None:
    """Raise if a run cannot serve as baseline: a proof failed, training was cut short, or recordings are missing."""
    of = RunEvaluator(run, config)
    rules = [all_rules()[name] for name in (UNTRUSTED, "unfinished", "damage")]
    for one in [*proof_findings(of), *(one for rule in rules for one in of.findings(rule))]:
        if one.status == "not_judged":
            place = f"{one.layer}: " if one.layer else ""
            why = "; ".join((one.message, *one.details))
            raise CannotJudge(f"{run.path} cannot be a baseline: {place}{why}.", one.remedy)


def baseline_of(source: Baseline | RunLike | None, config: Config) -> Baseline | None:
    """What to compare with: a baseline, the one in a file, or the one that a single run makes.

    Raises:
        CannotJudge: The file cannot be read, or the run is too short, cut short, damaged or not proved.
    """
    if source is None or isinstance(source, Baseline):
        return source
    if isinstance(source, str | os.PathLike) and not Path(source).is_dir():
        return read_baseline(Path(source))
    run = source if isinstance(source, StoredRun) else StoredRun(source)
    require_enough(run, config)
    require_sound(run, config)
    return measure([run], config)
