"""The gate: every rule on one or several runs, and their comparison with a baseline, as a list of findings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rnndiag.errors import CannotJudge
from rnndiag.health.baseline import Baseline, measure, read_baseline
from rnndiag.health.change import compare
from rnndiag.health.config import Config, read_config
from rnndiag.health.diagnosis.finding import diagnosis_finding
from rnndiag.health.finding import STATUSES, UNTRUSTED, Finding
from rnndiag.health.fingerprint import differences, fingerprint
from rnndiag.health.judge import Judge
from rnndiag.health.numbers import NotRecorded
from rnndiag.health.proof import proof_findings
from rnndiag.health.recorded import recorded_findings
from rnndiag.health.rule import Rule, all_rules
from rnndiag.store.reader import StoredRun

AGAINST = " vs base"
"""What follows the name of a check where it is compared with the baseline."""

RunLike = StoredRun | str | Path


def check(
    run: RunLike | Sequence[RunLike],
    baseline: Baseline | RunLike | None = None,
    config: Config | str | Path | Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Judge a run, or several runs (seeds) of one program together.

    `baseline` is a file that `rnndiag baseline` wrote, or another run. `config` is a pyproject.toml, the content of its
    table [tool.rnndiag] as a dict, or None for the defaults: only what is wrong for everyone fails.

    Raises CannotJudge where the run is too short, nothing could be checked, or the baseline is not comparable.
    """
    settings = read_config(config)
    runs = open_all(run)
    for one in runs:
        require_enough(one, settings)
    judges = [Judge(one, settings) for one in runs]
    against = baseline_of(settings.baseline if baseline is None else baseline, settings)
    if against is not None:
        require_comparable(runs, against, settings)
    found = findings(judges)
    if against is not None:
        found += against_baseline(judges, against)
    if not any(one.status in ("pass", "fail", "warn") for one in found):
        raise CannotJudge(
            f"Nothing was checked in {', '.join(one.name for one in runs)}: none of the checks has its numbers.",
            "Record the groups that the checks need (measures=), or configure other checks.",
        )
    return found


def look(
    run: RunLike, config: Config | str | Path | Mapping[str, Any] | None = None
) -> list[Finding]:
    """The findings of one run however short it is: what a report shows. Never a verdict for a gate."""
    return findings([Judge(open_all(run)[0], read_config(config))])


def findings(judges: Sequence[Judge]) -> list[Finding]:
    """What every rule says, the worst of the runs for each check and layer, then what the recorder itself found."""
    each = [
        [
            *diagnosis_findings(judge.run, judge.config),
            *proof_findings(judge),
            *(f for rule in all_rules().values() for f in judge.findings(rule)),
            *recorded_findings(judge.run),
        ]
        for judge in judges
    ]
    return each[0] if len(each) == 1 else worst_of_runs(each)


def diagnosis_findings(run: StoredRun, config: Config) -> list[Finding]:
    """The diagnosis of a run as a statement; it fails where its state is among those that do."""
    found = diagnosis_finding(run, config.fail_states, config.chance, config.needs)
    return [] if found is None else [found]


def worst_of_runs(each: Sequence[Sequence[Finding]]) -> list[Finding]:
    """For each check and layer the worst finding of several runs, with the numbers of all of them."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for one in each:
        for finding in one:
            groups.setdefault((finding.check, finding.layer), []).append(finding)
    merged = []
    for group in groups.values():
        shown = min(
            group, key=lambda finding: (STATUSES.index(finding.status), not finding.notable)
        )
        numbers = ", ".join(f"{f.run} {f.text_value}" for f in group if f.text_value)
        merged.append(
            shown.but(details=(*shown.details, f"note seeds: {numbers}")) if numbers else shown
        )
    return merged


def against_baseline(judges: Sequence[Judge], baseline: Baseline) -> list[Finding]:
    """One finding for each comparable check and layer that is to be compared."""
    found = []
    for rule in all_rules().values():
        bounds = judges[0].config.bounds(rule.name)
        if not rule.comparable or bounds.change == "off" or bounds.level == "off":
            continue
        layers = [layer for layer in judges[0].owners(rule) if bounds.covers(layer)]
        found += [
            one
            for layer in layers
            if (one := _compared(rule, layer, judges, baseline, len(layers)))
        ]
    return found


def _compared(
    rule: Rule, layer: str, judges: Sequence[Judge], baseline: Baseline, family: int
) -> Finding | None:
    config = judges[0].config
    bounds = config.bounds(rule.name)
    name = rule.name + AGAINST
    old = baseline.values.get(rule.name, {}).get(layer)
    try:
        new = [judge.value(rule, layer)[0] for judge in judges]
    except NotRecorded as reason:
        if old is None:
            return None
        return Finding(
            name,
            "not_judged",
            layer,
            message=f"the baseline has it, the run does not: {reason}",
            remedy="Record the same groups as the baseline's runs (measures=).",
        )
    if old is None:
        if not bounds.configured:
            return None
        return Finding(
            name,
            "not_judged",
            layer,
            message=f"the baseline has no {rule.name} of {layer}",
            remedy="Make the baseline again: rnndiag baseline RUN... -o FILE",
        )
    result = compare(
        old, new, bounds, config.false_alarm / family, config.min_baseline_runs, rule.floor
    )
    failed = result.failed
    how = "noise" if result.noise_known else "the allowed change"
    percent = f"{100 * result.tolerance:.3g}"
    mean = sum(new) / len(new)
    return Finding(
        check=name,
        status=("fail" if bounds.level == "fail" else "warn") if failed else "pass",
        layer=layer,
        value=result.change,
        text_value=_percent(result.change, result.tolerance),
        allowed=f"{'outside' if failed else 'within'} {how} (shift over {percent} % fails)",
        message=f"{rule.name} went from {rule.text(sum(old) / len(old), bounds)} to {rule.text(mean, bounds)}",
        remedy="Look for the commit that did it, or accept it as the new baseline."
        if failed
        else "",
        change=result.word,
        baseline=rule.format(sum(old) / len(old)),
        word="CHANGED" if failed else "",
        run=judges[0].run.name,
    )


def _percent(change: float, tolerance: float) -> str:
    """The change in %, in enough digits to differ from the tolerance."""
    for digits in range(1, 12):
        shown = f"{100 * change:+.{digits}f}"
        if abs(float(shown)) != 100 * tolerance:
            break
    return f"{shown} %"


def open_all(run: RunLike | Sequence[RunLike]) -> list[StoredRun]:
    """The runs, opened where they are paths."""
    several = [run] if isinstance(run, StoredRun | str | Path) else list(run)
    if not several:
        raise CannotJudge("No run was given.", "Name at least one run directory.")
    return [one if isinstance(one, StoredRun) else StoredRun(one) for one in several]


def require_enough(run: StoredRun, config: Config) -> None:
    """Raise where a run has fewer recordings than the checks need: what was not checked is not a pass."""
    outlines = run.outlines
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


def require_proof(run: StoredRun, config: Config) -> None:
    """Raise where a proof failed: numbers that are not to be trusted are no baseline."""
    judge = Judge(run, config)
    failed = [*proof_findings(judge), *judge.findings(all_rules()[UNTRUSTED])]
    for one in failed:
        if one.check == UNTRUSTED and one.status == "not_judged":
            raise CannotJudge(
                f"{run.path} cannot be a baseline: {one.layer}: {one.message}.", one.remedy
            )


def require_comparable(runs: Sequence[StoredRun], baseline: Baseline, config: Config) -> None:
    """Raise where a run's fingerprint differs from the baseline's, naming the field."""
    for run in runs:
        for name, old, new in differences(
            baseline.fingerprint, fingerprint(run), config.comparable_across
        )[:1]:
            raise CannotJudge(
                f"cannot compare {run.path} with {baseline.source}: {name} is {new!r}, the baseline has {old!r}.",
                "Make a new baseline (rnndiag baseline RUN... -o FILE), or allow the difference: "
                f'comparable_across = ["{name}"] in [tool.rnndiag].',
            )


def baseline_of(source: Baseline | RunLike | None, config: Config) -> Baseline | None:
    """What to compare with: a baseline, the one in a file, or the one that a single run makes."""
    if source is None or isinstance(source, Baseline):
        return source
    if isinstance(source, StoredRun):
        return measure([source], config)
    path = Path(source)
    if path.is_dir():
        run = StoredRun(path)
        require_enough(run, config)
        return measure([run], config)
    return read_baseline(path)
