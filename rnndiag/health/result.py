"""The complete result of a gate, as passed to all writers: runs, baseline, what was judged, findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnndiag.errors import RnndiagError
from rnndiag.health.baseline import Baseline, versions_of
from rnndiag.health.config import Config, read_config
from rnndiag.health.finding import Finding
from rnndiag.health.gate import RunLike, baseline_of, check, gate_finding, open_all
from rnndiag.health.outcome import Outcome, Verdict, verdict
from rnndiag.store.reader import StoredRun
from rnndiag.store.redact import redact_addresses
from rnndiag.store.text import counted


@dataclass(frozen=True)
class CheckResult:
    """The findings of `runs` and the context needed to show them."""

    paths: tuple[str, ...]
    against: str
    scope: str
    findings: tuple[Finding, ...]
    versions: Mapping[str, str]
    accept: str
    """The command that accepts an intended change into the baseline; empty without a baseline."""
    see: str
    """The command that shows details."""

    @property
    def outcome(self) -> Outcome:
        """Counts and exit code."""
        return Outcome.of(self.findings)

    @property
    def verdict(self) -> Verdict:
        """The heading."""
        return verdict(self.findings)

    @property
    def title(self) -> str:
        """`runs/pr-213 against ci/rnndiag.json (5 runs at 4f1c9e2)`."""
        return ", ".join(self.paths) + (f" against {self.against}" if self.against else "")


def evaluate_runs(
    runs: RunLike | Sequence[RunLike],
    baseline: Baseline | RunLike | None = None,
    config: Config | str | Path | Mapping[str, Any] | None = None,
) -> CheckResult:
    """`rnndiag.check`, returning findings together with their context."""
    settings = read_config(config)
    opened = open_all(runs)
    source = settings.baseline if baseline is None else baseline
    against = baseline_of(source, settings)
    findings = check(opened, against, settings)
    paths = tuple(redact_addresses(str(run.path)) for run in opened)
    return CheckResult(
        paths=paths,
        against=redact_addresses(against.title) if against else "",
        scope=scope(opened, settings),
        findings=tuple(without_credentials(one) for one in findings),
        versions=versions_of(opened[0]),
        accept=redact_addresses(accept(paths, source, against)) if against else "",
        see=f"rnndiag report {paths[0]} --open",
    )


def without_credentials(one: Finding) -> Finding:
    """The finding without user names, passwords and signatures of addresses in its texts."""
    texts = (one.message, one.remedy, one.run, *one.details)
    if not any(":/" in text for text in texts):
        return one
    return one.but(
        message=redact_addresses(one.message),
        remedy=redact_addresses(one.remedy),
        run=redact_addresses(one.run),
        details=tuple(map(redact_addresses, one.details)),
    )


def accept(paths: Sequence[str], source: object, against: Baseline) -> str:
    """The command that stores these runs as the new baseline."""
    several = " ..." if len(against.runs) > len(paths) else ""
    file = source if isinstance(source, str | Path) and not Path(source).is_dir() else "FILE"
    return f"rnndiag baseline {' '.join(paths)}{several} -o {file}"


def scope(runs: Sequence[StoredRun], config: Config) -> str:
    """`recordings 41-50 of 50 (steps 800-980), 2 layers`."""
    run = runs[0]
    steps = [int(step) for step in run.steps]
    count = len(run.judged(config.window, config.min_recordings))
    layers = len([layer for layer in run.layers if layer != "model"])
    first = len(steps) - count
    return (
        f"recordings {first + 1}-{len(steps)} of {len(steps)} (steps {steps[first]}-{steps[-1]}), "
        f"{counted(layers, 'layer')}" + (f", {len(runs)} runs" if len(runs) > 1 else "")
    )


def cannot_judge(paths: Sequence[str | Path], reason: RnndiagError) -> CheckResult:
    """The result if the gate could not run: one finding that was not judged, for writers to report."""
    finding = without_credentials(gate_finding(reason))
    named = tuple(redact_addresses(str(path)) for path in paths)
    return CheckResult(named, "", "nothing", (finding,), {}, "", f"rnndiag show {named[0]}")
