"""The baseline: a small committed JSON file with each check's value per layer and seed, and what makes runs
comparable."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnndiag.errors import CannotJudge
from rnndiag.health.config import Config
from rnndiag.health.evaluate import RunEvaluator
from rnndiag.health.fingerprint import differences, fingerprint
from rnndiag.health.numbers import NotRecorded
from rnndiag.health.rule import Rule, all_rules
from rnndiag.store.reader import StoredRun
from rnndiag.store.text import counted, mapping
from rnndiag.store.whole_files import read_regular

FORMAT = "rnndiag baseline"
VERSION = 1
_MOST_BYTES = 4 << 20

Values = Mapping[str, Mapping[str, tuple[float, ...]]]
"""check -> layer -> one value per run."""


@dataclass(frozen=True)
class Baseline:
    """The values that later runs are compared with. Made by `measure`, or read from a file."""

    values: Values
    fingerprint: Mapping[str, Any]
    runs: tuple[str, ...]
    commit: str = ""
    source: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """`ci/rnndiag.json (5 runs at 4f1c9e2)`."""
        return f"{self.source} ({counted(len(self.runs), 'run')}{f' at {self.commit[:7]}' if self.commit else ''})"

    def as_json(self) -> str:
        """The text of the file: sorted, one list per line, so that diffs are readable."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "commit": self.commit,
            "runs": list(self.runs),
            "versions": dict(self.versions),
            "fingerprint": dict(self.fingerprint),
        }
        lines = [
            f"  {json.dumps(key)}: {json.dumps(head[key], ensure_ascii=False)}" for key in head
        ]
        checks = []
        for check in sorted(self.values):
            layers = self.values[check]
            rows = [
                f"      {json.dumps(layer)}: {json.dumps(list(layers[layer]))}"
                for layer in sorted(layers)
            ]
            checks.append(f"    {json.dumps(check)}: {{\n" + ",\n".join(rows) + "\n    }")
        lines.append('  "values": {\n' + ",\n".join(checks) + "\n  }")
        return "{\n" + ",\n".join(lines) + "\n}\n"


def measure(runs: Sequence[StoredRun], config: Config) -> Baseline:
    """The baseline made from these runs (seeds of one program)."""
    prints = [fingerprint(run) for run in runs]
    for run, other in zip(runs[1:], prints[1:], strict=True):
        for name, old, new in differences(prints[0], other)[:1]:
            raise CannotJudge(
                f"{runs[0].name} and {run.name} cannot be one baseline: {name} is {old!r} and {new!r}.",
                "Give runs of one program that differ in their seed only.",
            )
    each = [run_values(run, config) for run in runs]
    values: dict[str, dict[str, tuple[float, ...]]] = {}
    for check in each[0]:
        for layer in each[0][check]:
            numbers = tuple(one[check][layer] for one in each if layer in one.get(check, {}))
            if len(numbers) == len(runs):
                values.setdefault(check, {})[layer] = numbers
    if not values:
        raise CannotJudge(
            f"{', '.join(run.name for run in runs)}: no comparable check has {config.min_recordings} values in its "
            "window, so there is nothing to store.",
            "Record the groups that the checks need (measures=), or more often.",
        )
    return Baseline(
        values=values,
        fingerprint=prints[0],
        runs=tuple(run.name for run in runs),
        commit=str(mapping(runs[0].provenance, "git").get("commit") or ""),
        source=runs[0].name,
        versions=versions_of(runs[0]),
    )


def versions_of(run: StoredRun) -> dict[str, str]:
    """Package -> version with which a run was recorded."""
    return {str(k): str(v) for k, v in mapping(run.provenance, "versions").items()}


def run_values(run: StoredRun, config: Config, judged: bool = True) -> dict[str, dict[str, float]]:
    """check -> layer -> number, for every comparable check that has one.

    Args:
        run: The run.
        config: Windows, and how many values a number must rest on.
        judged: Only numbers that a check may judge. False: also of few or of earlier recordings, to be shown.
    """
    of = RunEvaluator(run, config)
    found: dict[str, dict[str, float]] = {}
    for rule in all_rules().values():
        for layer in of.owners(rule) if rule.comparable else ():
            try:
                value = (of.value if judged else of.stated)(rule, layer)[0]
            except NotRecorded:
                continue
            if math.isfinite(value):
                found.setdefault(rule.name, {})[layer] = value
    return found


def changes(old: Baseline | None, new: Baseline) -> list[str]:
    """The differences as text, such as `reach of rnn.l0: 41.2 -> 38.0 steps`, one line per check and layer."""
    lines = []
    for name, before, after in differences(
        old.fingerprint if old else new.fingerprint, new.fingerprint
    ):
        lines.append(f"{name}: {before} -> {after}")
    for name, rule in all_rules().items():
        then = old.values.get(name, {}) if old else {}
        now = new.values.get(name, {})
        for layer in dict.fromkeys((*then, *now)):
            before, after = _mean(rule, then.get(layer)), _mean(rule, now.get(layer))
            lines.append(f"{name} of {layer}: {before} -> {after} {rule.unit}".rstrip())
    return lines


def _mean(rule: Rule, values: tuple[float, ...] | None) -> str:
    return rule.format(math.fsum(values) / len(values)) if values else "none"


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file; raises CannotJudge if there is none or it cannot be used."""
    remedy = "Make it with: rnndiag baseline RUN... -o FILE"
    try:
        content = json.loads(read_regular(path, _MOST_BYTES))
    except OSError as error:
        raise CannotJudge(
            f"The baseline {path} cannot be read: {error.strerror or error}.", remedy
        ) from error
    except (ValueError, RecursionError) as error:
        raise CannotJudge(f"The baseline {path} is not valid JSON.", remedy) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CannotJudge(f"{path} is not a baseline of rnndiag.", remedy)
    if content.get("version") != VERSION:
        raise CannotJudge(
            f"The baseline {path} has version {str(content.get('version'))[:20]}, "
            f"this rnndiag reads version {VERSION}.",
            "Upgrade rnndiag, or make the baseline again.",
        )
    try:
        return _from_content(content, str(path))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise CannotJudge(f"The baseline {path} is damaged: {error}.", remedy) from error


def _from_content(content: Mapping[str, Any], source: str) -> Baseline:
    runs = tuple(_text(name) for name in content["runs"])
    values: dict[str, dict[str, tuple[float, ...]]] = {}
    for check, layers in content["values"].items():
        for layer, numbers in layers.items():
            row = tuple(_finite(number) for number in numbers)
            if len(row) != len(runs) or not row:
                raise ValueError(f"{check} of {layer} has {len(row)} values for {len(runs)} runs")
            values.setdefault(check, {})[layer] = row
    if not values:
        raise ValueError("it holds no values")
    prints = content["fingerprint"]
    if not isinstance(prints, dict):
        raise ValueError("its fingerprint is not a table")
    versions = {str(k): str(v) for k, v in content.get("versions", {}).items()}
    return Baseline(values, prints, runs, _text(content.get("commit", "")), source, versions)


def _finite(number: Any) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < 1e300:
        raise ValueError(f"{str(number)[:40]!r} is not a finite number")
    return float(number)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is not a text")
    return value
