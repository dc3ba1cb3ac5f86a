"""Measures backward passes into one recording, outside of any training loop."""

from __future__ import annotations

from collections.abc import Sequence

from rnndiag.recorder.capture import BackwardPass
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.measures import Extent, chosen_measures, take
from rnndiag.recorder.output.pending_recording import Pending
from rnndiag.recorder.pass_subject import subject_of
from rnndiag.store.recording import Recording


def record_passes(
    passes: Sequence[BackwardPass],
    measures: Sequence[str] | None = None,
    step: int = 0,
    extent: Extent | None = None,
) -> Recording:
    """The recording of these passes in the form that the callback stores. Errors are raised.

    Args:
        passes: Backward passes of one step.
        measures: Groups to measure; None: all.
        step: The training step that the recording is labelled with.
        extent: How much the costly measures may look at.
    """
    faults = Faults(strict=True)
    groups = chosen_measures(measures)
    pending = Pending(step, groups)
    for seen in passes:
        subject = subject_of(pending, seen, extent or Extent())
        if subject is not None:
            pending.taken.append(take(subject, groups, faults))
    return pending.recording(0, (), [])
