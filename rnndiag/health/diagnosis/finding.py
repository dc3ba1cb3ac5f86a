"""The diagnosis as one finding, as the report, the gate and all writers show it."""

from __future__ import annotations

from collections.abc import Collection

from rnndiag.health.diagnosis.diagnose_run import diagnose
from rnndiag.health.diagnosis.diagnosis import Diagnosis, State, state_words
from rnndiag.health.finding import Finding, Status
from rnndiag.health.sentence_case import sentence_case
from rnndiag.store.reader import StoredRun

CHECK = "diagnosis"
FAIL_STATES: tuple[State, ...] = ("broken", "diverged", "not_trusted")
"""States that fail the gate unless a project configures others."""


def diagnosis_finding(
    run: StoredRun,
    fail_states: Collection[str] = FAIL_STATES,
    chance: float | None = None,
    needs: int | str | None = None,
) -> Finding | None:
    """The diagnosis of a run as a finding; None if the run holds neither losses nor a cause."""
    found = diagnose(run, chance=chance, needs=needs)
    if found.state == "cannot_tell" and not found.causes:
        return None
    first = found.causes[0] if found.causes else None
    return Finding(
        CHECK,
        _status(found, fail_states),
        layer=first.layer if first else "",
        text_value=found.state.replace("_", " "),
        message=statement(found),
        remedy=first.remedy.sentence if first and first.remedy else "",
        details=tuple(f"also {line}" for line in also(found)),
        word=heading(found),
        run=run.name,
    )


def statement(found: Diagnosis) -> str:
    """The headline without its first word (shown as heading) and without the remedy (shown separately)."""
    text = found.headline.partition(": ")[2] or found.headline
    first = found.causes[0].remedy if found.causes else None
    text = text if first is None else text.removesuffix(first.sentence).rstrip()
    return sentence_case(text, found.causes[0].layer if found.causes else "")


def heading(found: Diagnosis) -> str:
    """`STUCK: FORGET GATES SHUT`, `HEALTHY, LEARNED`."""
    word = state_words(found.state).upper()
    if found.healthy:
        return "AT REST" if found.at_rest else f"HEALTHY, {word}"
    names = [cause.name for cause in found.causes if cause.name not in (found.state, "cannot_tell")]
    return f"{word}: {names[0].replace('_', ' ').upper()}" if names else word


def paragraphs(found: Diagnosis) -> list[str]:
    """Heading, statement with the first remedy, and one paragraph per further cause, for consoles."""
    first = found.causes[0].remedy if found.causes else None
    text = f"{statement(found)} {first.sentence}" if first else statement(found)
    return [heading(found), text, *(f"Also {line}" for line in also(found)[:-1])]


def also(found: Diagnosis) -> list[str]:
    """One sentence per cause after the first; a cause that acts at another time comes with its remedy, others as
    consequences."""
    lines = []
    for cause in found.causes[1:]:
        name = cause.name.replace("_", " ")
        if cause.remedy is None:
            lines.append(f"{name}, which may go with it: {cause.sentence}")
        else:
            lines.append(f"{name}: {cause.sentence} {cause.remedy.sentence}")
    if len(found.causes) > 1:
        lines.append("repair the first, then look again.")
    return lines


def _status(found: Diagnosis, fail_states: Collection[str]) -> Status:
    if found.state in fail_states:
        return "fail"
    return "note" if found.healthy or found.state == "cannot_tell" else "warn"
