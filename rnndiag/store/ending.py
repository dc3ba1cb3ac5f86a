"""How the file of one rank and start ended: the member `end.json`, which a clean close writes last.

The numbers come from a file that anybody may have written, so every field is checked for its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rnndiag.store.segment import Segment
from rnndiag.store.text import mapping

FINISHED = "finished"

_SHORT_REASONS = {"KeyboardInterrupt": "interrupted", "SIGTERMException": "SIGTERM"}


@dataclass(frozen=True)
class Ending:
    """What the writer of one rank and start stored when it closed."""

    file: str
    rank: int
    start: int
    reason: str
    """`finished`, or what ended the training: the name of an exception, `interrupted`, `SIGTERM`."""
    cut_short: bool = False
    """Whether training did not make its last step."""
    dropped: int = 0
    """Recordings that were due and are not in the run."""
    first_dropped: int | None = None
    last_dropped: int | None = None
    why_dropped: str = ""
    final_step: int | None = None
    """The training step at which the writer closed."""
    gave_up: Mapping[str, str] = field(default_factory=dict)
    """Parts of the recorder that were switched off after repeated faults, each with its last fault."""


def reason_of(exception: BaseException) -> str:
    """The stored reason for an exception that ended training: `interrupted`, `SIGTERM`, or the exception's name."""
    name = type(exception).__name__
    return _SHORT_REASONS.get(name, name)


def ending_of(segment: Segment) -> Ending | None:
    """The ending of a segment; None if its writer did not close it, or continued in another segment."""
    end = segment.end
    if end is None:
        return None
    dropped = mapping(end, "dropped")
    return Ending(
        file=segment.label,
        rank=segment.name.rank,
        start=segment.name.start,
        reason=str(end.get("reason", "")),
        cut_short=bool(end.get("cut_short", False)),
        dropped=_count(dropped.get("count")) or 0,
        first_dropped=_count(dropped.get("first_step")),
        last_dropped=_count(dropped.get("last_step")),
        why_dropped=str(dropped.get("why", "")),
        final_step=_count(end.get("final_step")),
        gave_up={str(part): str(fault) for part, fault in mapping(end, "gave_up").items()},
    )


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < 2**63 else None
