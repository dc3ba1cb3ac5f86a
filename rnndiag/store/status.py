"""The status of a run: finished, ended early, running, or not closed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rnndiag.store.ending import ending_of
from rnndiag.store.process import is_alive
from rnndiag.store.safe_text import printable
from rnndiag.store.segment import Segment

_PATIENCE_SECONDS = 120.0
_PATIENCE_INTERVALS = 5
_ALIVE_FACTOR = 30
"""A process known to be alive (such as a notebook) may be silent this many times longer before it counts as gone."""


class Status(str):
    """`finished`, `ended early, SIGTERM`, `running`, or `not closed, last recording 3 h ago`.

    `word` is the part before the comma.

    `last` is when the run was last written (unix seconds), `reason` what the writer said on closing.
    """

    word: str
    last: float
    reason: str

    def __new__(cls, word: str, last: float, reason: str = "", detail: str = "") -> Status:
        """Compose the status text from its parts."""
        status = super().__new__(cls, f"{word}, {detail}" if detail else word)
        status.word, status.last, status.reason = word, last, reason
        return status


def ago(seconds: float) -> str:
    """A duration in one unit: 40 s, 12 min, 3 h, 2 days."""
    for unit, length, until in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < until:
            return f"{max(0, int(seconds // length))} {unit}"
    return f"{int(seconds // 86400)} days"


def status_of(segments: Sequence[Segment], recordings: int, interval: float) -> Status:
    """The status by the newest start: closed by all its ranks, else by whether its writers seem alive.

    `interval` is the usual time between two recordings in seconds; it says how long silence is no sign of death.
    """
    start = max((segment.name.start for segment in segments), default=0)
    newest: dict[tuple[int, str], Segment] = {}
    for segment in segments:
        if segment.name.start == start:
            key = (segment.name.rank, segment.name.token)
            newest[key] = max(newest.get(key, segment), segment, key=lambda s: s.name.number)
    last = max(map(_modified, segments), default=0.0)
    ends = [end for segment in newest.values() if (end := ending_of(segment)) is not None]
    if ends and len(ends) == len(newest):
        told = next((end for end in ends if end.cut_short), ends[0])
        reason = printable(told.reason)
        if told.cut_short:
            return Status("ended early", last, reason, reason or "no reason was stored")
        return Status("finished", last, reason)
    silence = time.time() - last
    patience = max(_PATIENCE_SECONDS, _PATIENCE_INTERVALS * interval)
    for segment in newest.values():
        alive = is_alive(segment.facts.get("process") or {})
        allowed = patience if alive is None else _ALIVE_FACTOR * patience
        if segment.end is None and alive is not False and silence < allowed:
            return Status("running", last)
    when = f"last recording {ago(silence)} ago" if recordings else "nothing recorded"
    return Status("not closed", last, "", when)


def _modified(segment: Segment) -> float:
    """Time of the last write of a segment, unix seconds; 0 if its file is gone or was replaced."""
    try:
        return segment.file.modified()
    except OSError:
        return 0.0
