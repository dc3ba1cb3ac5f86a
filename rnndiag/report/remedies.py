"""The list of remedies: one entry per distinct remedy of the findings, with the layers it applies to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnndiag.health.diagnosis.finding import CHECK
from rnndiag.health.finding import STATUSES, Finding


@dataclass(frozen=True)
class Remedy:
    """One change to make, and the finding that recommends it."""

    what: str
    why: str
    layers: tuple[str, ...]


def remedies(findings: Sequence[Finding]) -> list[Remedy]:
    """The remedies of all findings, failures first. Passes and plain statements have none."""
    # In a diagnosed run, a notable number alone needs no remedy.
    diagnosed = any(f.check == CHECK for f in findings)
    wanted = [
        f
        for f in findings
        if f.remedy
        and (f.status in ("fail", "warn", "not_judged") or (f.notable and not diagnosed))
    ]
    wanted.sort(key=lambda f: (STATUSES.index(f.status), not f.notable))
    grouped: dict[str, list[Finding]] = {}
    for finding in wanted:
        grouped.setdefault(finding.remedy, []).append(finding)
    return [
        Remedy(what, found[0].message, tuple(dict.fromkeys(f.layer for f in found if f.layer)))
        for what, found in grouped.items()
    ]
