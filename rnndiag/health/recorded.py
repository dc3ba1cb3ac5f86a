"""Findings that the recorder itself left in the run: the preflight that the callback made at the start."""

from __future__ import annotations

from contextlib import suppress

from rnndiag.health.finding import Finding
from rnndiag.store.reader import StoredRun

NOTE = "preflight"
"""The key of `Recording.notes` under which they are kept, as a list of `Finding.as_json()`."""

_MOST = 64


def recorded_findings(run: StoredRun) -> list[Finding]:
    """The findings that the run's first recording holds. What does not read as a finding is left out."""
    if len(run.steps) == 0:
        return []
    entries = run.outlines[0].notes.get(NOTE)
    if not isinstance(entries, list | tuple):
        return []
    found = []
    for entry in entries[:_MOST]:
        with suppress(TypeError, ValueError):
            found.append(Finding.from_json(entry).but(run=run.name))
    return found
