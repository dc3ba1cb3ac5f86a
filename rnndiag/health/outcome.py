"""The exit code of a list of findings, and its counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rnndiag.health.finding import UNTRUSTED, Finding, Status

PASS, FAILED, USAGE, CANNOT_JUDGE, INTERNAL = range(5)
"""0 pass; 1 a check failed; 2 usage or config error; 3 cannot judge; 4 internal error."""


def exit_code(findings: Iterable[Finding]) -> int:
    """The exit code: 3 where a proof failed or nothing was judged, then 1, then 3 where a check was not judged, then 0.

    Checks of the stored run itself do not count as something that was judged.
    """
    found = list(findings)
    if any(one.check == UNTRUSTED and one.status == "not_judged" for one in found):
        return CANNOT_JUDGE
    if not any(one.judged for one in found):
        return CANNOT_JUDGE
    if any(one.status == "fail" for one in found):
        return FAILED
    return CANNOT_JUDGE if any(one.status == "not_judged" for one in found) else PASS


@dataclass(frozen=True)
class CheckGroup:
    """The findings of one check over its layers."""

    check: str
    status: Status
    worst: Finding
    others: tuple[Finding, ...]


def by_check(findings: Sequence[Finding]) -> list[CheckGroup]:
    """Findings grouped by check, the worst layer first; checks in the given order."""
    groups: dict[str, list[Finding]] = {}
    for one in findings:
        groups.setdefault(one.check, []).append(one)
    result = []
    for name, group in groups.items():
        ordered = sorted(group, key=lambda f: f.severity)
        result.append(CheckGroup(name, ordered[0].status, ordered[0], tuple(ordered[1:])))
    return result


@dataclass(frozen=True)
class Outcome:
    """Summary of a list of findings."""

    code: int
    failed: int
    warned: int
    passed: int
    not_judged: int

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> Outcome:
        """Count checks (not layers) by their worst status."""
        statuses = [group.status for group in by_check(findings)]
        return cls(
            exit_code(findings),
            statuses.count("fail"),
            statuses.count("warn"),
            statuses.count("pass"),
            statuses.count("not_judged"),
        )

    @property
    def word(self) -> str:
        """PASS, FAIL or CANNOT JUDGE."""
        return {PASS: "PASS", FAILED: "FAIL"}.get(self.code, "CANNOT JUDGE")

    @property
    def sentence(self) -> str:
        """`2 failed, 4 passed, 0 not judged`, and how many warned where some did."""
        warned = f", {self.warned} warned" if self.warned else ""
        return f"{self.failed} failed{warned}, {self.passed} passed, {self.not_judged} not judged"
