"""NEED over lag: a screen picks features, skips are fitted level by level, and a control repeats them with another
past."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rnndiag.recorder.need.control import planted_is_found
from rnndiag.recorder.need.features import Block
from rnndiag.recorder.need.grid import offered
from rnndiag.recorder.need.screen import Screen
from rnndiag.recorder.need.skips import Design, Outputs, SkipFitter
from rnndiag.stats.need.flips import Array
from rnndiag.stats.need.gains import HeldOutGains
from rnndiag.stats.need.numbers import CONTROL, GATE

PICKED = 3
"""Number of blocks of features, best in the screen, that are fitted for each group of lags."""
LEAST_Z = 1.0
SHARES = (CONTROL, GATE)
"""Shares of R that the positive control tries in this order, until one is not found."""


@dataclass(frozen=True)
class NeedCurve:
    """The gains by the skips, and the starting point of the positive control."""

    gains: HeldOutGains
    peak_lag: float
    """The lag with the highest score in the screen."""
    gap: float
    base: Outputs
    """The outputs after the level of the present."""


def need_curve(fitter: SkipFitter, groups: Sequence[range], block: int) -> NeedCurve:
    """Measure the gain of the present and of every group of lags."""
    recorded = fitter.recorded()
    picked, peak = _picked(fitter, recorded, groups)
    base = fitter.level(recorded, Design(), [None])
    chain = _climb(fitter, base, picked, donor=False)
    present, gap = fitter.gains(recorded, base)
    gains, gap_of_groups = _gains_of(fitter, chain)
    control = np.zeros_like(gains)
    # If no level was accepted there is no gain to compare with.
    if chain[-1] is not base:
        control, _ = _gains_of(fitter, _climb(fitter, base, picked, donor=True))
    held_out = HeldOutGains(present.numpy(), gains, control, block, fitter.loss.seed)
    return NeedCurve(held_out, peak, max(gap, gap_of_groups), base)


def smallest_found(
    fitter: SkipFitter, base: Outputs, groups: Sequence[range], beyond: int, scale: float
) -> float:
    """The smallest share of the scale R at which a planted need is found; inf: none.

    It is planted in the middle (on a logarithmic scale) of the lags from `beyond` on; if the present undoes it there,
    because the state holds that lag, it is planted in the last group.
    """
    if not groups:
        return math.inf
    longest = groups[-1][-1]
    middle = round(math.sqrt((beyond if beyond <= longest else 1) * longest))
    places = [next(group for group in groups if middle in group), groups[-1]]
    found = math.inf
    for share in SHARES:
        if not any(planted_is_found(fitter, base, place, share * scale) for place in places):
            break
        found = share
    return found


def _picked(
    fitter: SkipFitter, recorded: Outputs, groups: Sequence[range]
) -> tuple[list[list[Block]], float]:
    """The best blocks of each group, and the lag with the highest score of all."""
    screen = Screen(fitter.parts[fitter.FIT].rows, fitter.errors(recorded, fitter.FIT))
    picked, peak, highest = [], float("nan"), LEAST_Z
    for group in groups:
        scores = sorted(screen.scores(offered(group)), key=lambda score: -score.z)
        picked.append([score.block for score in scores[:PICKED] if score.z > LEAST_Z])
        if scores and scores[0].z > highest:
            highest, peak = scores[0].z, float(scores[0].block.low)
    return picked, peak


def _climb(
    fitter: SkipFitter, base: Outputs, picked: Sequence[list[Block]], donor: bool
) -> list[Outputs]:
    """The outputs before the first group and after each group."""
    design = Design(donor)
    fitter.extend(design, [None])
    chain = [base]
    for blocks in picked:
        chain.append(fitter.level(chain[-1], design, blocks))
    return chain


def _gains_of(fitter: SkipFitter, chain: Sequence[Outputs]) -> tuple[Array, float]:
    """Gains (groups, sequences), and the largest gap of a split."""
    found = [fitter.gains(one, other) for one, other in pairwise(chain)]
    n = fitter.parts[fitter.TEST].rows.n_sequences
    if not found:
        return np.zeros((0, n)), 0.0
    return np.stack([gains.numpy() for gains, _ in found]), max(gap for _, gap in found)
