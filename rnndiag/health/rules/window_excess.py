"""Rule: how much longer the window in use is than the memory that the model uses, which costs time and memory.

It rests on `memory_need`, never on the credit profile: a net that had solved a recall over 25 steps ended with a reach
of 1.6, and would not have learned with a window of that length.
"""

from __future__ import annotations

import math

import numpy as np

from rnndiag.health.numbers import DoesNotApply, LayerNumbers, NotRecorded
from rnndiag.health.rule import RuleSeries, rule
from rnndiag.health.rules.truncation_error import windows_in_use
from rnndiag.stats.advice import seam_name

USED = "used_memory"


@rule(
    "window_excess",
    meaning="the window in use as a multiple of the memory that the model uses",
    statement="the window in use is {value} times the memory that the model uses",
    excuse="fine where time and memory allow it",
    too_high="A shorter window would do and cost less.",
    family="profile",
    rank=60,
    unit="x",
    digits=1,
    comparable=False,
    typical=lambda numbers: (None, 4.0),
)
def window_excess(numbers: LayerNumbers) -> RuleSeries:
    """One number for all judged recordings together, pooled as in the recommendation."""
    if numbers.cause == "detach":
        raise DoesNotApply(
            "the state is cut before the credit has faded, so no shorter window is in question"
        )
    if seam_name(numbers.whole.run, numbers.layer) is not None:
        raise DoesNotApply("training cuts the state: truncation_error says what that costs")
    facts = numbers.ever("need_fact")
    labels = facts.coordinates.get("need_fact", ())
    used = facts.values[-1, labels.index(USED)] if USED in labels else math.nan
    in_use = list(windows_in_use(numbers).values())
    if not used >= 1 or not in_use:  # NaN where it could not be told
        raise NotRecorded(f"how much memory {numbers.layer} uses is not known")
    excess = float(np.median(in_use)) / float(used)
    return RuleSeries(
        facts.steps[-1:], np.array([excess]), f"it uses {used:.0f} steps", rests_on=len(in_use)
    )
