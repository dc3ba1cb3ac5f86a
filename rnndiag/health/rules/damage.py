"""Rule: what is missing in the stored run: damaged arrays, missing files and ranks, dropped recordings.

A check of the last recordings must not judge earlier ones because the last ones were never stored.
"""

from __future__ import annotations

import numpy as np

from rnndiag.health.bounds import Bounds
from rnndiag.health.numbers import LayerNumbers
from rnndiag.health.rule import RuleSeries, rule
from rnndiag.store.ending import Ending

_ESSENTIAL = (
    "the recorder (",
    "the schedule",
    "watching the model",
    "reading a backward pass",
    "writing a recording",
)
"""Parts of the recorder without which nothing is recorded."""


@rule(
    "damage",
    meaning="faults by which something is not in the stored run",
    statement="{value} faults lost something that was, or should have been, recorded",
    too_high="See `rnndiag verify RUN`; record again, or allow so many with max in [tool.rnndiag.checks.damage].",
    rank=99,
    digits=0,
    owner="model",
    reduce="last",
    defaults=Bounds(max=0),
    words=("", "DAMAGED RUN"),
    comparable=False,
    of_the_run=True,
    violation="not_judged",
)
def damage(numbers: LayerNumbers) -> RuleSeries:
    """Number of faults that lost data, as found by reading so far, plus the number of dropped recordings."""
    run = numbers.whole.run
    last = int(run.steps[-1]) if len(run.steps) else 0
    notes = [str(problem) for problem in run.problems if problem.lost]
    count = len(notes)
    for end in run.endings:
        count += max(end.dropped, int(_stopped(end, last)))
        if end.dropped:
            since = "" if end.first_dropped is None else f" from step {end.first_dropped} on"
            many = f"{end.dropped} recording{'s were' if end.dropped > 1 else ' was'} dropped"
            notes.append(f"{many}{since}: {end.why_dropped}")
        notes += [f"left out after repeated faults: {fault}" for fault in end.gave_up.values()]
    return RuleSeries(
        np.asarray(run.steps[-1:], dtype=np.int64), np.array([float(count)]), "; ".join(notes[:3])
    )


def _stopped(end: Ending, last_step: int) -> bool:
    """Whether recording ended before training did, because a part of the recorder was switched off."""
    essential = any(part.startswith(_ESSENTIAL) for part in end.gave_up)
    return essential and (end.final_step is None or end.final_step > last_step)
