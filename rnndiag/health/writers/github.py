"""The result of a gate for GitHub Actions: at most ten annotations in the log, and the summary of the step."""

from __future__ import annotations

from rnndiag.health.finding import Finding
from rnndiag.health.result import CheckResult
from rnndiag.health.writers.markdown import markdown_text
from rnndiag.store.safe_text import printable

MOST_ANNOTATIONS = 10
"""GitHub shows at most ten annotations of a kind per step."""

MOST_BYTES = 1 << 20
"""GitHub refuses a larger step summary."""

_LEVELS = {"fail": "error", "not_judged": "error", "warn": "warning"}


def annotation_lines(judgement: CheckResult) -> str:
    """Workflow commands, one per line; the last one counts those that do not fit."""
    listed = [one for one in judgement.findings if one.status in _LEVELS]
    listed.sort(key=lambda one: list(_LEVELS).index(one.status))
    room = MOST_ANNOTATIONS if len(listed) <= MOST_ANNOTATIONS else MOST_ANNOTATIONS - 1
    lines = [_annotation(one) for one in listed[:room]]
    if len(listed) > room:
        lines.append(
            f"::error title=rnndiag::{len(listed) - room} more findings are in the step summary"
        )
    return "".join(f"{line}\n" for line in lines)


def _annotation(one: Finding) -> str:
    place = f" in {one.layer}" if one.layer else ""
    found = f"{one.text_value}, allowed {one.allowed}. " if one.allowed and one.text_value else ""
    message = f"{found}{one.message}. {one.remedy}".strip()
    return f"::{_LEVELS[one.status]} title={_property(f'rnndiag {one.check}{place}')}::{_data(message)}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def summary(judgement: CheckResult, room: int = MOST_BYTES) -> str:
    """The Markdown, cut at a line end if it is larger than GitHub accepts."""
    text = markdown_text(judgement)
    if len(text.encode()) <= room:
        return text
    ending = "\n\nThe rest is left out: a step summary holds 1 MiB.\n"
    kept = text.encode()[: max(room - len(ending), 0)].decode(errors="ignore")
    return kept.rpartition("\n")[0] + ending
