"""The one line that stands over a report and an end-of-fit screen: a word, a sentence and a shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnndiag.health.diagnosis.finding import CHECK
from rnndiag.health.finding import UNTRUSTED, Finding
from rnndiag.health.outcome import exit_code
from rnndiag.store.reader import StoredRun

SHAPES = {"fault": "▲", "unsure": "◆", "well": "●"}
"""Never colour alone: a fault, a doubt and a healthy run differ in shape as well."""


@dataclass(frozen=True)
class Verdict:
    """`word` in capitals, `sentence` of what is so, `advice` of what to do, `shape` beside the word."""

    word: str
    sentence: str
    advice: str
    shape: str
    exit_code: int
    finding: Finding | None = None
    """The finding that gave the heading."""

    @property
    def kind(self) -> str:
        """fault, unsure or well."""
        return next(kind for kind, shape in SHAPES.items() if shape == self.shape)


def verdict(findings: Sequence[Finding], run: StoredRun | None = None) -> Verdict:
    """The heading of these findings: distrust first, then failures, warnings, and what is out of the ordinary."""
    code = exit_code(findings)
    found = leading(findings)
    stated = next((one for one in findings if one.check == CHECK), None)
    if stated is not None and (found is None or found is stated or found.status not in _STRONGER):
        return _of_diagnosis(stated, code)
    if found is None and run is not None and len(run.steps) == 0:
        return Verdict(
            "NOTHING RECORDED", "The run holds no recording.", "", SHAPES["unsure"], code
        )
    if found is None:
        return Verdict("HEALTHY", _healthy(findings), "", SHAPES["well"], code)
    shape = "unsure" if found.status == "not_judged" else "fault"
    word = found.word or f"{found.check.replace('_', ' ').upper()} {_TITLES[found.status]}"
    return Verdict(word, _sentence(found.message), found.remedy, SHAPES[shape], code, found)


_STRONGER = ("fail", "warn", "not_judged")
"""A finding of such a status heads the page before the diagnosis of a healthy model; statements do not."""


def _of_diagnosis(stated: Finding, code: int) -> Verdict:
    """The heading that the diagnosis gives."""
    shape = "well" if stated.status == "note" else "fault"
    if stated.word.startswith("CANNOT TELL") or stated.word.startswith("LEARN"):
        shape = "unsure"
    return Verdict(stated.word, stated.message, stated.remedy, SHAPES[shape], code, stated)


_TITLES = {"fail": "FAILED", "warn": "WARNING", "not_judged": "NOT JUDGED", "note": "", "pass": ""}


def leading(findings: Sequence[Finding]) -> Finding | None:
    """The finding that heads a page: distrust first, then what failed, what warns, and what is out of the ordinary."""

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


def _healthy(findings: Sequence[Finding]) -> str:
    """The headline number of a run without faults: the shortest reach."""
    known = [one for one in findings if one.check == "reach" and one.value is not None]
    if not known:
        return "No check found a fault."
    shortest = min(known, key=lambda one: one.value if one.value is not None else 0.0)
    return _sentence(shortest.message)


def _sentence(text: str) -> str:
    text = text.strip()
    if text[:1].isascii():  # a symbol such as ρ keeps its case
        text = text[:1].upper() + text[1:]
    return text.rstrip(".") + "." if text else ""
