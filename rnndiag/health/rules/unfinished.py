"""A run that training did not close: what it holds may not be what it would have held."""

from __future__ import annotations

import numpy as np

from rnndiag.health.bounds import Bounds
from rnndiag.health.numbers import LayerNumbers
from rnndiag.health.rule import RuleSeries, rule


@rule(
    "unfinished",
    meaning="1 where training has not closed the run",
    statement="{value} of 1 runs was not closed by its training",
    too_low="",
    too_high="Judge the run again when training has ended; if it was stopped, train again.",
    rank=95,
    digits=0,
    owner="model",
    reduce="last",
    defaults=Bounds(max=0, level="warn"),
    comparable=False,
)
def unfinished(numbers: LayerNumbers) -> RuleSeries:
    """0 for a run that was closed, else 1, with the run's status."""
    run = numbers.whole.run
    finished = run.status.word == "finished"
    note = "" if finished else f"the run is: {run.status}"
    return RuleSeries(
        np.asarray(run.steps[-1:], dtype=np.int64), np.array([float(not finished)]), note
    )
