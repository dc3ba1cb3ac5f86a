"""The table of a comparison: judged numbers of the runs, and how each changed.

A change is identical, within noise, shifted or out of bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnndiag.health.baseline import run_values
from rnndiag.health.change import compare
from rnndiag.health.finding import CHANGES
from rnndiag.health.fingerprint import differences, fingerprint
from rnndiag.health.rule import all_rules
from rnndiag.report.context import Context


@dataclass(frozen=True)
class Delta:
    """One number of one layer in the first run and in another one."""

    check: str
    meaning: str
    layer: str
    run: str
    before: str
    after: str
    change: str
    word: str


@np.errstate(all="ignore")  # numbers that are not finite are shown as such
def deltas(contexts: Sequence[Context], names: Sequence[str]) -> list[Delta]:
    """All numbers that the first run shares with another one, largest changes first."""
    config = contexts[0].config
    old = run_values(contexts[0].run, config, judged=False)
    found: list[tuple[int, float, Delta]] = []
    for run_name, other in zip(names[1:], contexts[1:], strict=True):
        new = run_values(other.run, config, judged=False)
        for name, rule in all_rules().items():
            for layer in old.get(name, {}):
                if layer not in new.get(name, {}):
                    continue
                before, after = old[name][layer], new[name][layer]
                bounds = config.bounds(name)
                result = compare(
                    [before],
                    [after],
                    bounds,
                    config.false_alarm,
                    config.min_baseline_runs,
                    rule.floor,
                )
                delta = Delta(
                    name,
                    rule.meaning,
                    layer,
                    run_name,
                    rule.text(before, bounds),
                    rule.text(after, bounds),
                    f"{100 * result.change:+.3g} %" if result.change else "0 %",
                    result.word,
                )
                found.append((-CHANGES.index(result.word), -abs(result.change), delta))
    return [delta for *_, delta in sorted(found, key=lambda entry: entry[:2])]


def what_differs(
    contexts: Sequence[Context], names: Sequence[str]
) -> list[tuple[str, str, str, str]]:
    """Differences that make runs less comparable: (field, value in the first run, name of the other run, its value)."""
    old = fingerprint(contexts[0].run)
    return [
        (field, str(before), name, str(after))
        for name, other in zip(names[1:], contexts[1:], strict=True)
        for field, before, after in differences(old, fingerprint(other.run))
    ]
