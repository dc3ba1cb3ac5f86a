"""Which recordings of a fit are made whatever the budget says.

A diagnosis needs the start of training and its end: evidence at step 0 tells a bad start from a later symptom,
and the state of the model is read from the last 40 % of the fit. Five evenly spread recordings do as well as
fifteen. Where the length of the fit is not known, recordings at ticks that grow by a constant factor leave two
of them in the last 40 % wherever it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of a fit of known length at which it is recorded."""
EARLY = (1, 4, 16)
"""Further ticks at the start, where a learning rate that is too high shows first."""
EARLY_UP_TO = 0.125
"""They are left out beyond this share of a fit of known length."""
GROWTH = 1.29
"""Later ticks of a fit of unknown length grow by this factor: 1.29 ** -2 is 0.6."""
ENDS_GROWTH = 4.0
"""In a fit of unknown length, groups of measures for the ends come once the fit is this many times longer."""


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
        """Whether a planned recording is to be made at or before this tick; it then counts as made."""
        found = False
        while self._next is not None and self.first + self._next <= tick:
            found, self._next = True, next(self._ticks, None)
        return found

    def is_end(self, tick: int) -> bool:
        """Whether a planned recording stands for the start or the end of the fit. Asked once a planned recording."""
        elapsed = tick - self.first
        if self.total is not None:
            return elapsed == 0 or self._next is None
        if elapsed > 0 and elapsed < max(EARLY[-1], ENDS_GROWTH * self._last_ends):
            return False
        self._last_ends = elapsed
        return True

    @property
    def to_come(self) -> int:
        """How many planned recordings a fit of known length still gets; 0 where its length is not known."""
        if self.total is None or self._next is None:
            return 0
        return sum(tick >= self._next for tick in known_ticks(self.total))


def known_ticks(total: int) -> list[int]:
    """Planned ticks of a fit of `total` batches, rising."""
    spread = {round(share * (total - 1)) for share in SHARES}
    return sorted(spread | {tick for tick in EARLY if tick <= EARLY_UP_TO * (total - 1)})


def growing_ticks() -> Iterator[int]:
    """Planned ticks of a fit of unknown length, without end."""
    yield 0
    yield from EARLY
    last = EARLY[-1]
    for power in count(1):
        tick = round(EARLY[-1] * GROWTH**power)
        if tick > last:
            yield (last := tick)
