"""Rule: a run whose training was cut short or still runs: its last recordings are not those of a full training."""

from __future__ import annotations

import numpy as np

from rnndiag.health.bounds import Bounds
from rnndiag.health.numbers import LayerNumbers
from rnndiag.health.rule import RuleSeries, rule


@rule(
    "unfinished",
    meaning="1 where training has not made its last step",
    statement="{value} of 1 runs was not finished by its training",
    too_high="Judge the run again when training has ended. To judge a run that was cut short for what it holds: "
    "rnndiag check RUN --unfinished.",
    rank=95,
    digits=0,
    owner="model",
    reduce="last",
    defaults=Bounds(max=0),
    words=("", "CUT SHORT"),
    comparable=False,
    of_the_run=True,
    violation="not_judged",
)
def unfinished(numbers: LayerNumbers) -> RuleSeries:
    """0 if training made its last step, else 1, with the status of the run."""
    run = numbers.whole.run
    finished = run.status.word == "finished"
    note = "" if finished else f"the run is: {run.status}"
    return RuleSeries(
        np.asarray(run.steps[-1:], dtype=np.int64), np.array([float(not finished)]), note
    )
