"""The outlines of a run's recordings (steps, verdicts, notes), read once for all checks."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from rnndiag.run.recording import Recording
from rnndiag.run.run import Run

_READ: WeakKeyDictionary[Run, tuple[int, tuple[Recording, ...]]] = WeakKeyDictionary()


def outlines_of(run: Run) -> tuple[Recording, ...]:
    """All recordings without their measurements; read again where the run has grown."""
    count, found = _READ.get(run, (-1, ()))
    if count != len(run):
        found = run.outlines
        _READ[run] = (len(run), found)
    return found
