"""Groups of lags and the features that are offered in each."""

from __future__ import annotations

from collections.abc import Iterable

from rnndiag.recorder.need.features import BAG, BILINEAR, LINEAR, SQUARE, Block

EVERY_LAG_UP_TO = 32
"""Beyond, every group is screened at about as many lags, evenly spread, for the linear skips at all."""


def lag_groups(max_lag: int, cuts: Iterable[int]) -> list[range]:
    """1, 2-3, 4-7, ... up to `max_lag`, divided also at every cut: a cut is the first lag of a group."""
    begins = {1, *(cut for cut in cuts if 1 <= cut <= max_lag)}
    power = 1
    while power <= max_lag:
        begins.add(power)
        power *= 2
    ordered = sorted(begins)
    return [range(a, b) for a, b in zip(ordered, [*ordered[1:], max_lag + 1], strict=True)]


def offered(group: range) -> list[Block]:
    """The blocks of features that a group of lags offers to the screen."""
    spread = range(group[0], group[-1] + 1, max(1, len(group) // EVERY_LAG_UP_TO))
    blocks = [Block(LINEAR, lag, lag) for lag in group]
    blocks += [Block(kind, lag, lag) for kind in (BILINEAR, SQUARE) for lag in spread]
    if len(group) > 1:
        blocks.append(Block(BAG, group[0], group[-1]))
    return blocks
