"""Groups of lags, and the features that are tried in each."""

from __future__ import annotations

from collections.abc import Iterable

from rnndiag.recorder.need.features import BAG, BILINEAR, LINEAR, SQUARE, Block

EVERY_LAG_UP_TO = 32
"""In longer groups only about this many evenly spaced lags are screened, except for the linear features."""


def lag_groups(max_lag: int, cuts: Iterable[int]) -> list[range]:
    """Ranges 1, 2-3, 4-7, ... up to `max_lag`, also split at every cut; a cut is the first lag of a group."""
    begins = {1, *(cut for cut in cuts if 1 <= cut <= max_lag)}
    power = 1
    while power <= max_lag:
        begins.add(power)
        power *= 2
    ordered = sorted(begins)
    return [range(a, b) for a, b in zip(ordered, [*ordered[1:], max_lag + 1], strict=True)]


def offered(group: range) -> list[Block]:
    """The blocks of features to be screened for one group of lags: linear at every lag, products and squares at
    evenly spaced lags, and sums over the group."""
    spread = range(group[0], group[-1] + 1, max(1, len(group) // EVERY_LAG_UP_TO))
    blocks = [Block(LINEAR, lag, lag) for lag in group]
    blocks += [Block(kind, lag, lag) for kind in (BILINEAR, SQUARE) for lag in spread]
    if len(group) > 1:
        blocks.append(Block(BAG, group[0], group[-1]))
    return blocks
