"""Rule: how far back the gradient reaches, as the lag within which 90 % of the credit lies."""

from __future__ import annotations

import math

import numpy as np

from rnndiag.health.numbers import LayerNumbers
from rnndiag.health.rule import Range, RuleSeries, rule
from rnndiag.stats.reach import reach as reach_of_profile

SHARE = 0.9


def _typical(numbers: LayerNumbers) -> Range:
    steps = numbers.time_steps
    return (0.1 * steps, None) if steps and steps >= 10 else (None, None)


@rule(
    "reach",
    meaning="the lag that holds 90 % of the credit, interpolated",
    statement="90 % of the credit lies within {ceil} of {T} steps of the loss",
    excuse="fine if the task needs no more",
    infinite="90 % of the credit is not reached within the lags that were measured, of {T} steps",
    too_low="If the task needs more: start with an orthogonal W_hh or a forget bias of 1 to 2, use gates in place of "
    "a plain RNN, or put a loss nearer to what must be remembered.",
    too_high="Credit that does not fade with the lag is the mark of a net that diverges or never learned its task: "
    "lower the learning rate, clip the gradient norm, and compare the loss.",
    family="profile",
    rank=30,
    unit="steps",
    digits=1,
    typical=_typical,
    words=("SHORT MEMORY", "CREDIT DOES NOT FADE"),
    causes={
        "detach": "The state is detached (or the window ends) before that: carry the graph further back if the task "
        "needs more.",
        "loss": "The loss asks for no more: its own gradient is near the states that it needs. A longer memory needs "
        "a task, or a loss, that depends on the past.",
    },
)
def reach(numbers: LayerNumbers) -> RuleSeries:
    """Reach of the credit profile in steps, per recording."""
    profile = numbers.profiles()
    lags = numbers.lags(profile.steps)
    found = [
        reach_of_profile(row, SHARE, steps) for row, steps in zip(profile.values, lags, strict=True)
    ]
    longer = [one.within for one in found if one.value == math.inf]
    values = np.array([one.value for one in found])
    return RuleSeries(profile.steps, values, known_above=float(min(longer, default=math.inf)))
