"""The credit lost at the cuts of a fit, measured where a recorded chunk continues from an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.chains.stack import recurrences
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.measures.seam import seam
from rnndiag.recorder.measures.take import Taken, untouched
from rnndiag.recorder.output.pending_recording import Pending, merge
from rnndiag.recorder.replay.call_memory import MOST_BYTES, CallMemory
from rnndiag.recorder.replay.earlier_chunks import Chunks, Group
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.settings import Settings
from rnndiag.store.layer_names import recurrence, stack_name
from rnndiag.store.measurement import Measurement

GROUP = "lags"
"""The seam is measured together with this group of measures."""
WHAT = "measuring across the seam"
BATCHES_WITHOUT_STATE = 20
"""After this many batches without a carried state chunks are no longer kept, except for recorded batches."""
_UNLIKE = (
    "the chunk before it, run again, does not come out as it was: it draws random numbers of its own, or its device "
    "does not tell its dropout masks"
)
_TOO_LARGE = f"one chunk takes {{:.0f}} MB, and {MOST_BYTES / 2**20:.0f} MB may be kept"


class Seams:
    """Keeps chunks in steps shortly before a recorded one, and measures the recorded chunks against them.

    For each recurrence, the first chunk of the batch with the full number of earlier chunks is measured, or else the
    one with the most. The results go into the first recording of the batch.
    """

    def __init__(self, settings: Settings, model: Any, faults: Faults, overhead: Overhead) -> None:
        wanted = settings.measures is None or GROUP in settings.measures
        self._most = settings.seam if wanted else 0
        self._samples = settings.samples
        self._faults, self._overhead = faults, overhead
        self._call_memory = CallMemory(model, faults, overhead, self._most)
        self._chunks = Chunks(self._call_memory, self._most)
        self._watched = 0
        """Number of batches whose calls were examined for a carried state."""
        self._home: Taken | None = None
        self._found: dict[str, tuple[int, list[Measurement]]] = {}

    def batch_started(self) -> None:
        """Reset for a new batch."""
        self._home = None
        self._found.clear()
        self._chunks.forget()
        self._watched += self.armed

    def forget_batch(self) -> None:
        """Drop the layer runs of this batch; kept calls of earlier batches stay."""
        self._chunks.forget()

    def arm(self, ticks: int, pending: Pending | None) -> None:
        """Keep the coming calls if the step is recorded or a recording may follow within a few ticks (`ticks` from
        now)."""
        if self._most and (pending is not None or ticks <= self.most):
            self._call_memory.arm()
        else:
            self.disarm()

    def disarm(self) -> None:
        """Stop keeping calls until the next `arm`."""
        if self._call_memory.armed:
            self._call_memory.disarm()

    @property
    def most(self) -> int:
        """Number of chunks kept before a recorded step; 0 if no state was carried in the batches examined."""
        carries = self._watched < BATCHES_WITHOUT_STATE or self._call_memory.carries
        return self._most if carries else 0

    @property
    def armed(self) -> bool:
        """Whether calls are being kept."""
        return self._call_memory.armed

    def release(self) -> None:
        """Drop references to the model."""
        self._call_memory.disarm()
        self._chunks.forget()

    def read(self, pending: Pending, runs: Sequence[LayerRun]) -> None:
        """Search chunks that continue from an earlier one, among the runs of one backward pass."""
        if not self._most or GROUP not in pending.groups or self._faults.gave_up(WHAT):
            return
        # runs that the replay does not describe cannot be followed across a seam either
        runs = [run for run in runs if not run.open]
        self._chunks.add(runs)
        for group in recurrences([run for run in runs if not run.reverse]):
            name = recurrence(_name(group))
            known = self._found.get(name, (0, []))[0]
            if known == self._most or not _has_finite_gradient(group):
                continue
            with self._faults.guard(WHAT):
                earlier = self._chunks.before(group)
                why = self._why_not()
                if not earlier and why:
                    reasons = pending.facts.setdefault("not_measured", {})
                    reasons[f"seam of {name}"] = why
                # the last chunk of a sequence may be shorter
                shorter = known > 0 and group[0].T < earlier[-1][0].T
                if len(earlier) > known and not shorter:
                    self._measure(pending, name, earlier, group)

    def _why_not(self) -> str:
        if self._call_memory.too_large:
            return _TOO_LARGE.format(self._call_memory.too_large / 2**20)
        return _UNLIKE if self._chunks.unlike else ""

    def _measure(self, pending: Pending, name: str, earlier: list[Group], group: Group) -> None:
        with self._overhead.own("seam"), untouched(group[0].device):
            measured, sentence = seam(name, earlier, group, self._samples, pending.step)
        self._found[name] = (len(earlier), measured)
        if self._home is None:
            self._home = Taken(verdict="exact")
            pending.taken.append(self._home)
        self._home.measurements[:] = [m for _, own in self._found.values() for m in own]
        notes = {"seam": {name: sentence}, "stacks": {name: [recurrence(r.name) for r in group]}}
        merge(self._home.notes, notes if len(group) > 1 else {"seam": notes["seam"]})


def _name(group: Group) -> str:
    return group[0].name if len(group) == 1 else stack_name([run.name for run in group])


def _has_finite_gradient(group: Group) -> bool:
    """Whether the chunk has a nonzero direct gradient and only finite numbers."""
    parts = [part for run in group for part in (run.inputs, *run.states, *run.initial, *run.direct)]
    return any(bool(part.any()) for run in group for part in run.direct) and all(
        bool(part.isfinite().all()) for part in parts
    )
