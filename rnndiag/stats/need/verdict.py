"""Derives the verdict from the numbers of `memory_need`.

Several statements may hold at once; they are tried in a fixed order and the first that holds leads: first data that
cannot resolve anything, then a solved task. A state that holds more than half of the loss unused leads over a need of
memory, since skips from the past are provisional then.
"""

from __future__ import annotations

import math
from typing import Literal

from rnndiag.stats.need.numbers import (
    CONTROL,
    FEWEST_ROWS,
    FEWEST_SEQUENCES,
    GATE,
    NeedNumbers,
    P,
)

Lead = Literal[
    "needed_beyond",
    "needed_within",
    "readout",
    "reached_not_used",
    "nothing_found",
    "solved",
    "negligible",
    "unresolved",
    "not_testable",
]


def lead_of(need: NeedNumbers) -> Lead:
    """The leading verdict."""
    if too_little_data(need):
        return "unresolved"
    if 0 <= need.loss < GATE * need.scale:
        return "solved"
    readout = need.present_p <= P and need.present.gain > need.gate
    if readout and holds_most(need):
        return "readout"
    if need.further.passes(need.gate):
        return "needed_beyond"
    if readout:
        return "readout"
    if need.within.passes(need.gate):
        return "needed_within"
    if need.limit != "reach" and need.beyond > need.max_lag:
        return "not_testable"
    if need.further.significant:
        return "negligible" if need.further.gain <= need.gate else "unresolved"
    if need.floor <= CONTROL:
        return "nothing_found"
    if reaches_further_than_used(need):
        return "reached_not_used"
    return "unresolved"


def holds_most(need: NeedNumbers) -> bool:
    """Whether the state holds more than half of the loss unused, so that results on past inputs are provisional.

    It must also exceed the gain of far inputs: implied for a loss whose minimum is 0, but not for others.
    """
    return need.present.gain > max(need.loss / 2, need.further.gain)


def too_little_data(need: NeedNumbers) -> bool:
    """Whether there are too few sequences or outputs to fit even functions of the present without overfitting."""
    return need.n_sequences < FEWEST_SEQUENCES or need.rows < FEWEST_ROWS


def reaches_further_than_used(need: NeedNumbers) -> bool:
    """Whether the gradient reaches further back than the inputs that the net uses."""
    used = need.used_memory
    return used is not None and math.isfinite(need.reach) and need.reach > used
