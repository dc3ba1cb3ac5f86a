"""The measurements of watched backward passes as one recording, outside of any Trainer."""

from __future__ import annotations

from collections.abc import Sequence

from rnndiag.recorder.capture import BackwardPass, runs_beside_loops
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.measures import Extent, Subject, chosen_measures, take
from rnndiag.recorder.output.pending_recording import Pending, renamed
from rnndiag.store.recording import Recording


def record_passes(
    passes: Sequence[BackwardPass],
    measures: Sequence[str] | None = None,
    step: int = 0,
    extent: Extent | None = None,
) -> Recording:
    """What the callback would store of these passes: all groups of measures, or those named. Faults are raised."""
    faults = Faults(strict=True)
    groups = chosen_measures(measures)
    pending = Pending(step, groups)
    for seen in passes:
        if told := {**seen.cut, **seen.missed}:
            pending.facts.setdefault("not_measured", {}).update(told)
        if seen.resets:
            pending.facts.setdefault("resets", {}).update(seen.resets)
        runs = []
        kept, pieces = runs_beside_loops(seen)
        for run in kept:
            number = pending.layers[run.name] = pending.layers.get(run.name, 0) + 1
            runs.append(renamed(run, number))
        subject = Subject(
            tuple(runs),
            loops=seen.loops,
            scale=seen.scale,
            for_proof=pieces,
            made=seen.adjoints,
            dtype=seen.dtype,
            extent=extent or Extent(),
        )
        pending.taken.append(take(subject, groups, faults))
    return pending.recording(0, (), [])
