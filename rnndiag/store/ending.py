"""How the file of one rank and start ended: the member `end.json`, which a clean close writes last.

The numbers come from a file that anybody may have written, so every field is checked for its type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rnndiag.store.segment import Segment

FINISHED = "finished"

_SHORT_REASONS = {"KeyboardInterrupt": "interrupted", "SIGTERMException": "SIGTERM"}

_CUT_SHORT = re.compile(r"\w*(Error|Exception|Interrupt)|stopped|superseded .*|.* was raised")
"""Reasons by which writers before `cut_short` was stored said that training did not make its last step."""


@dataclass(frozen=True)
class Ending:
    """What the writer of one rank and start said when it closed."""

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
    """Part of the recorder that was left out after repeated faults -> its last fault."""


def reason_of(exception: BaseException) -> str:
    """What a run says of an exception that ended its training: `interrupted`, `SIGTERM`, or the exception's name."""
    name = type(exception).__name__
    return _SHORT_REASONS.get(name, name)


def ending_of(segment: Segment) -> Ending | None:
    """The ending of a segment; None where its writer did not close it, or wrote on in another segment."""
    end = segment.end
    if end is None:
        return None
    dropped = end.get("dropped")
    dropped = dropped if isinstance(dropped, Mapping) else {}
    gave_up = end.get("gave_up")
    reason = str(end.get("reason", ""))
    cut_short = end.get("cut_short", _CUT_SHORT.fullmatch(reason) is not None)
    return Ending(
        file=segment.label,
        rank=segment.name.rank,
        start=segment.name.start,
        reason=reason,
        cut_short=bool(cut_short),
        dropped=_count(dropped.get("count")) or 0,
        first_dropped=_count(dropped.get("first_step")),
        last_dropped=_count(dropped.get("last_step")),
        why_dropped=str(dropped.get("why", "")),
        final_step=_count(end.get("final_step")),
        gave_up={str(part): str(fault) for part, fault in gave_up.items()}
        if isinstance(gave_up, Mapping)
        else {},
    )


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < 2**63 else None
