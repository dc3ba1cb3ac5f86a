"""The result of a gate for a console: failures first, each with where, since when, its meaning and what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rnndiag.health.evaluate import ADVICE
from rnndiag.health.finding import Finding
from rnndiag.health.gate import AGAINST
from rnndiag.health.outcome import CheckGroup, by_check
from rnndiag.health.result import CheckResult
from rnndiag.store.safe_text import printable, safe_line

_LABELS = {"fail": "FAIL", "warn": "warn", "not_judged": "????"}
_WIDTH = 110


def console_text(judgement: CheckResult) -> str:
    """The text, ending in a newline."""
    return "".join(f"{safe_line(line)}\n" for line in _lines(judgement))


def _lines(judgement: CheckResult) -> Iterator[str]:
    groups = by_check(judgement.findings)
    yield printable(judgement.title)
    yield f"judged: {judgement.scope}"
    yield ""
    shown = [group for group in groups if group.status in _LABELS]
    printed: set[str] = set()
    for group in sorted(shown, key=lambda group: list(_LABELS).index(group.status)):
        yield from _group(group, judgement, printed)
    if shown:
        yield ""
    passed = [group.check for group in groups if group.status == "pass"]
    if passed:
        yield from textwrap.wrap(
            ", ".join(passed), _WIDTH, initial_indent="  pass  ", subsequent_indent=" " * 8
        )
        yield ""
    notes = [group for group in groups if group.status == "note"]
    for group in notes:
        if group.worst.value is not None:
            yield from _note(group)
    unmeasured = [group.check for group in notes if group.worst.value is None]
    if unmeasured:
        line = "not measured, and not asked for: " + ", ".join(unmeasured)
        yield from textwrap.wrap(line, _WIDTH, initial_indent="  note  ", subsequent_indent=" " * 8)
    if notes:
        yield ""
    outcome = judgement.outcome
    yield f"{f'{outcome.word}  {outcome.sentence}':<62} [exit {outcome.code}]"
    if judgement.accept and outcome.failed:
        yield f"meant to change it?  {printable(judgement.accept)}"


def _group(group: CheckGroup, judgement: CheckResult, printed: set[str]) -> Iterator[str]:
    """The lines of one check with a problem; advice already in `printed` is not repeated."""
    one = group.worst
    yield f"  {_LABELS[one.status]}  {one.check:<22} {printable(one.text_value):>12}    {one.allowed}".rstrip()
    failed = {other.check for other in judgement.findings if other.status == "fail"}
    if one.check.endswith(AGAINST) and one.check.removesuffix(AGAINST) in failed:
        return
    yield from _detail(f"where {_where(group)}")
    yield from (line for detail in one.details[:1] for line in _detail(detail))
    yield from _detail(f"means {one.message}")
    yield from (line for detail in one.details[1:] for line in _detail(detail))
    see = judgement.see if one.status == "fail" else ""
    for label, advice in (("do", one.remedy), ("see", see)):
        if advice and advice not in printed:
            printed.add(advice)
            yield from _detail(f"{label} {advice}")


def _where(group: CheckGroup) -> str:
    """`layer rnn.l0; rnn.l1 is fine (43.0)`."""
    places = [_place(group.worst)]
    for other in group.others[:4]:
        state = {
            "pass": "is fine",
            "note": "is noted",
            "fail": "fails too",
            "warn": "warns too",
        }.get(other.status, "was not judged")
        number = f" ({bare(other.text_value)})" if other.text_value else ""
        places.append(f"{other.layer} {state}{number}")
    if len(group.others) > 4:
        places.append(f"{len(group.others) - 4} more layers")
    return "; ".join(places)


def bare(text: str) -> str:
    """The number without its unit, which is printed beside it already; a % stays."""
    number, _, unit = text.partition(" ")
    return text if unit.startswith("%") else number


def _place(one: Finding) -> str:
    if one.layer in ("", "model"):
        return "the whole model"
    return f"layer {one.layer}"


def _detail(line: str) -> Iterator[str]:
    label, _, text = printable(line).partition(" ")
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"        {label:<7} ",
        subsequent_indent=" " * 16,
        break_on_hyphens=False,
    )


def _note(group: CheckGroup) -> Iterator[str]:
    """The lines of one note: the most notable layer with its sentence, the other layers with their numbers."""
    one = group.worst
    place = "" if one.layer in ("", "model") else f" of {one.layer}"
    others = ", ".join(
        f"{other.layer} {bare(other.text_value)}" for other in group.others[:4] if other.text_value
    )
    line = f"{one.check}{place}: {one.message}{f' ({others})' if others else ''}"
    yield from textwrap.wrap(
        printable(line), _WIDTH, initial_indent="  note  ", subsequent_indent=" " * 8
    )
    for detail in one.details:
        if detail.startswith(f"{ADVICE} "):
            yield from _detail(detail)
    if one.notable and one.remedy:
        yield from _detail(f"do {one.remedy}")
