"""The result of a gate as Markdown for pull requests and step summaries: verdict as heading, failures in a table."""

from __future__ import annotations

from collections.abc import Iterator

from rnndiag.health.finding import Finding
from rnndiag.health.outcome import by_check
from rnndiag.health.result import CheckResult
from rnndiag.store.safe_text import printable

_SPECIAL = "\\`*_{}[]<>()#+!|~&@$"
_OPEN = ("fail", "not_judged", "warn")


def escaped(text: object) -> str:
    """Text escaped so that Markdown shows it literally: no markup, mention, link or table border."""
    return "".join(f"&#{ord(c)};" if c in _SPECIAL else c for c in printable(text))


def code(text: object) -> str:
    """Text as an inline code span from which it cannot break out."""
    return "<code>" + escaped(text) + "</code>"


def markdown_text(judgement: CheckResult) -> str:
    """The text, ending in a newline."""
    return "\n".join(_lines(judgement)) + "\n"


def _lines(judgement: CheckResult) -> Iterator[str]:
    outcome, heading = judgement.outcome, judgement.verdict
    yield f"## rnndiag: {outcome.word}, {outcome.sentence}"
    yield ""
    shown = [group.worst for group in by_check(judgement.findings) if group.status in _OPEN]
    if heading.finding is not None and shown:
        place = f" in {code(heading.finding.layer)}" if heading.finding.layer else ""
        yield f"**{heading.shape} {escaped(heading.word)}: {escaped(heading.sentence)}**{place}"
    else:
        yield f"{heading.shape} {escaped(heading.word)}: {escaped(heading.sentence)}"
    yield ""
    yield f"{code(judgement.title)}; judged: {escaped(judgement.scope)}"
    yield ""
    if shown:
        yield from _table(judgement)
    for one in shown:
        if one.remedy:
            yield f"- **{escaped(one.check)}**: {escaped(one.remedy)}"
        for line in one.details:
            if line.startswith(("since", "also")):
                yield f"  - {escaped(line)}"
    yield ""
    yield from _folded(judgement)
    if judgement.accept and outcome.failed:
        yield f"Meant to change it? {code(judgement.accept)}"
        yield ""
    if judgement.see:
        yield f"More: {code(judgement.see)}"
    if judgement.versions:
        versions = ", ".join(
            f"{name} {version}" for name, version in sorted(judgement.versions.items())
        )
        yield ""
        yield f"<sub>{escaped(versions)}</sub>"


def _table(judgement: CheckResult) -> Iterator[str]:
    yield "| check | layer | found | allowed | baseline | since step |"
    yield "|---|---|---:|---|---:|---:|"
    for one in judgement.findings:
        if one.status in _OPEN:
            yield _row(one)
    yield ""


def _row(one: Finding) -> str:
    since = "" if one.since_step is None else str(one.since_step)
    label = {"fail": "FAIL ", "warn": "warn ", "not_judged": "not judged: "}.get(one.status, "")
    cells = (
        label + one.check,
        one.layer or "model",
        one.text_value or one.message,
        one.allowed,
        one.baseline,
        since,
    )
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"


def _folded(judgement: CheckResult) -> Iterator[str]:
    rest = [one for one in judgement.findings if one.status not in _OPEN and one.value is not None]
    if not rest:
        return
    passed = sum(one.status == "pass" for one in rest)
    yield f"<details><summary>{passed} passed, {len(rest) - passed} noted</summary>"
    yield ""
    yield "| check | layer | found | allowed |"
    yield "|---|---|---:|---|"
    for one in rest:
        cells = (one.check, one.layer or "model", one.text_value, one.allowed or "noted only")
        yield "| " + " | ".join(escaped(cell) for cell in cells) + " |"
    yield ""
    yield "</details>"
    yield ""
