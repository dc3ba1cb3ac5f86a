"""Recordings that were lost: a run that cannot be read whole cannot pass unseen."""

from __future__ import annotations

import numpy as np

from rnndiag.health.bounds import Bounds
from rnndiag.health.numbers import LayerNumbers
from rnndiag.health.rule import RuleSeries, rule


@rule(
    "damage",
    meaning="faults of the stored run by which something recorded was lost",
    statement="{value} faults of the stored run lost something that was recorded",
    too_low="",
    too_high="See `rnndiag verify RUN`; record again, or allow so many with max in [tool.rnndiag.checks.damage].",
    rank=99,
    digits=0,
    owner="model",
    reduce="last",
    defaults=Bounds(max=0),
    words=("", "DAMAGED RUN"),
    comparable=False,
    violation="not_judged",
)
def damage(numbers: LayerNumbers) -> RuleSeries:
    """How many faults lost something, as reading the run has shown so far."""
    run = numbers.whole.run
    lost = [problem for problem in run.problems if problem.lost]
    told = str(lost[0]) if lost else ""
    return RuleSeries(
        np.asarray(run.steps[-1:], dtype=np.int64), np.array([float(len(lost))]), told
    )
