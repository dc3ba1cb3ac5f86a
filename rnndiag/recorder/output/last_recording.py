"""The last recording of a fit: what the ring of scalars and the story of clipping still hold."""

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
    """A recording of a phase of its own, so that it stands beside a step's recording and never replaces one."""
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
