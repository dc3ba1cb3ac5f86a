"""The recordings of a fit that are made independently of the budget.

A diagnosis needs the start of training and its end: evidence at step 0 separates a bad start from later symptoms, and
the state of the model is read from the last 40 % of the fit. Five evenly spread recordings do as well as fifteen. If
the length of the fit is unknown, recordings at ticks that grow by a constant factor leave two of them in the last 40 %
wherever it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Positions of recordings in a fit of known length, as shares of it."""
EARLY = (1, 4, 16)
"""Further ticks at the start, where a too high learning rate shows first."""
EARLY_UP_TO = 0.125
"""In a fit of known length, the early ticks beyond this share of it are left out."""
GROWTH = 1.29
"""Growth factor of later ticks in a fit of unknown length: 1.29 ** -2 is 0.6."""
ENDS_GROWTH = 4.0
"""In a fit of unknown length, groups for the ends are measured again when the fit has grown by this factor."""


@dataclass
class PlannedRecordings:
    """Ticks of the planned recordings, counted from the start of the fit.

    Args:
        total: Batches of the fit; None where its end is not known.
        first: The tick at which the fit starts, above 0 where it was resumed.
    """

    total: int | None
    first: int = 0
    _ticks: Iterator[int] = field(init=False)
    _next: int | None = field(init=False)
    _last_ends: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._ticks = iter(known_ticks(self.total) if self.total is not None else growing_ticks())
        self._next = next(self._ticks, None)

    @property
    def next_tick(self) -> int | None:
        """The next planned tick; None: there are no more."""
        return None if self._next is None else self.first + self._next

    def due(self, tick: int) -> bool:
        """Whether a planned recording is due at this tick or was before; it then counts as made."""
        found = False
        while self._next is not None and self.first + self._next <= tick:
            found, self._next = True, next(self._ticks, None)
        return found

    def is_end(self, tick: int) -> bool:
        """Whether a planned recording is at the start or the end of the fit. Call once per planned recording."""
        elapsed = tick - self.first
        if self.total is not None:
            return elapsed == 0 or self._next is None
        if elapsed > 0 and elapsed < max(EARLY[-1], ENDS_GROWTH * self._last_ends):
            return False
        self._last_ends = elapsed
        return True

    @property
    def to_come(self) -> int:
        """Number of planned recordings still to come in a fit of known length; 0 if the length is unknown."""
        if self.total is None or self._next is None:
            return 0
        return sum(tick >= self._next for tick in known_ticks(self.total))


def known_ticks(total: int) -> list[int]:
    """Planned ticks of a fit of `total` batches, sorted."""
    spread = {round(share * (total - 1)) for share in SHARES}
    return sorted(spread | {tick for tick in EARLY if tick <= EARLY_UP_TO * (total - 1)})


def growing_ticks() -> Iterator[int]:
    """Planned ticks of a fit of unknown length, an infinite iterator."""
    yield 0
    yield from EARLY
    last = EARLY[-1]
    for power in count(1):
        tick = round(EARLY[-1] * GROWTH**power)
        if tick > last:
            yield (last := tick)
