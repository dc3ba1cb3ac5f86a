"""The last recording of a fit: remaining history and clipping summaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rnndiag.recorder.facts.training_loop import TrainingLoop, training_measurements
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording

PHASE = "end"


def last_recording(
    loop: TrainingLoop,
    ring: Sequence[Measurement],
    clipping: list[dict[str, Any]],
    overhead: Overhead,
    faults: Faults,
) -> Recording:
    """A recording with a phase of its own, so that it never replaces the recording of a step."""
    notes: dict[str, Any] = {
        "clipping": clipping,
        "errors": faults.drain(),
        "overhead": {"seconds": overhead.spent, "share": overhead.share},
    }
    measured = training_measurements(None, None, overhead.spent, overhead.share)
    return Recording(
        step=loop.step,
        phase=PHASE,
        rank=loop.rank,
        epoch=loop.epoch,
        measurements=(*measured, *ring),
        notes={key: value for key, value in notes.items() if value},
    )
