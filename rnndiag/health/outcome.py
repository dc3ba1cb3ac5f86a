"""What findings amount to: the exit code, the counts, and the one line at the top of a report or of a screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rnndiag.health.diagnosis.finding import CHECK
from rnndiag.health.finding import UNTRUSTED, Finding, Status
from rnndiag.health.sentence_case import sentence_case
from rnndiag.store.reader import StoredRun

PASS, FAILED, USAGE, CANNOT_JUDGE, INTERNAL = range(5)
"""0 pass; 1 a check failed; 2 usage or config error; 3 cannot judge; 4 internal error."""
SHAPES = {"fault": "▲", "unsure": "◆", "well": "●"}
"""Shape per kind, so that colour is never the only difference."""


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


@dataclass(frozen=True)
class Verdict:
    """`word` in capitals, `sentence` with the observation, `advice` on what to do, `shape` beside the word."""

    word: str
    sentence: str
    advice: str
    shape: str
    exit_code: int
    finding: Finding | None = None
    """The finding that the heading was made from."""

    @property
    def kind(self) -> str:
        """fault, unsure or well."""
        return next(kind for kind, shape in SHAPES.items() if shape == self.shape)


def verdict(findings: Sequence[Finding], run: StoredRun | None = None) -> Verdict:
    """The heading of these findings, normally the diagnosis of the run.

    If a run was not diagnosed because no loss was recorded: distrust first, then failures, warnings, and notable
    numbers.
    """
    code = exit_code(findings)
    stated = next((one for one in findings if one.check == CHECK and one.status in _STATED), None)
    if stated is not None:
        return _of_diagnosis(stated, leading([one for one in findings if one.check != CHECK]), code)
    found = leading(findings)
    if found is None and run is not None and len(run.steps) == 0:
        return Verdict(
            "NOTHING RECORDED", "The run holds no recording.", "", SHAPES["unsure"], code
        )
    if found is None:
        return Verdict("NO FAULT FOUND", _no_fault(findings), "", SHAPES["well"], code)
    shape = "unsure" if found.status == "not_judged" else "fault"
    return Verdict(
        _title(found),
        _sentence(found.message, found.layer),
        found.remedy,
        SHAPES[shape],
        code,
        found,
    )


_STATED = ("fail", "warn", "note")
"""Statuses of a diagnosis that was possible."""


def _of_diagnosis(stated: Finding, other: Finding | None, code: int) -> Verdict:
    """The heading made from the diagnosis; if a check fails as well, the sentence says so."""
    shape = "well" if stated.status == "note" else "fault"
    if stated.word.startswith(("CANNOT TELL", "LEARN")):
        shape = "unsure"
    sentence = stated.message
    if other is not None and stated.status != "fail" and _weighs(other) and _is_news(other, stated):
        where = f" in {other.layer}" if other.layer else ""
        sentence = f"{sentence} But: {_title(other).lower()}{where}: {other.message.rstrip('.')}."
        shape = "fault" if other.status == "fail" else "unsure" if shape == "well" else shape
    return Verdict(stated.word, sentence, stated.remedy, SHAPES[shape], code, stated)


def _weighs(other: Finding) -> bool:
    return other.status == "fail" or (other.check == UNTRUSTED and other.status == "not_judged")


def _is_news(other: Finding, stated: Finding) -> bool:
    """Whether a check adds something to the diagnosis: False if both name the same cause or say the same.

    Also False if a proof fails beside a cause: a cause that rested on the proof would be replaced by `not trusted`.
    """
    if other.check == UNTRUSTED and stated.status == "warn" and ": " in stated.word:
        return False
    same = _title(other).partition(" FAILED")[0] in stated.word
    return not same and other.message.rstrip(".") not in stated.message


def _title(found: Finding) -> str:
    return found.word or f"{found.check.replace('_', ' ').upper()} {_TITLES[found.status]}"


_TITLES = {"fail": "FAILED", "warn": "WARNING", "not_judged": "NOT JUDGED", "note": "", "pass": ""}


def leading(findings: Sequence[Finding]) -> Finding | None:
    """The finding for the heading of a page: distrust first, then failures, warnings, and notable numbers."""

    def order(one: Finding) -> int | None:
        if one.check == UNTRUSTED and one.status == "not_judged":
            return 0
        if one.check == CHECK:
            return 1 if one.status == "fail" else 2 if one.status == "warn" else None
        if one.status in ("fail", "warn"):
            return 1 if one.status == "fail" else 2
        if one.notable and one.word:
            return 3
        return 4 if one.status == "not_judged" else None

    ranked = [
        (place, index) for index, one in enumerate(findings) if (place := order(one)) is not None
    ]
    return findings[min(ranked)[1]] if ranked else None


def _no_fault(findings: Sequence[Finding]) -> str:
    """The headline number of a run without faults: the shortest reach."""
    known = [one for one in findings if one.check == "reach" and one.value is not None]
    if not known:
        return "No check found a fault."
    shortest = min(known, key=lambda one: one.value if one.value is not None else 0.0)
    return _sentence(shortest.message, shortest.layer)


def _sentence(text: str, layer: str = "") -> str:
    text = sentence_case(text.strip(), layer)
    return text.rstrip(".") + "." if text else ""
