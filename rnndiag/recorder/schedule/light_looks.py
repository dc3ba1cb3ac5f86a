"""Which steps between recordings are looked at: all of them, or every n-th where the budget does not pay for all.

Looking at a step means the norm of its gradients, its line in the history, and the black box's light hooks. That costs
the same whatever the step takes, so short steps cannot pay for it. Own seconds are timed where they are spent; what a
look costs torch itself and the steps after it, whose code it has driven out of the caches, shows only in their length.
Hence a trial: once the training is warm, looks are four and twelve steps apart in turns. From one look to the next
takes four steps and a look, or twelve steps and a look; two medians give both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

TRIAL_FROM = 200
"""Steps before the trial: up to then every step is looked at, so that a short fit has its whole history."""
NEAR, FAR = 4, 12
"""Steps from look to look in the trial."""
TRIAL_STEPS = 15 * (NEAR + FAR)
SHARE = 1 / 3
"""Of the budget, what looking may take; the rest is for recordings."""
FRUGAL = 1 / 10
"""Of the budget, what looking takes where it still looks `PLENTY` times."""
PLENTY = 256
"""Looks that tell the story of a fit of known length."""


@dataclass
class LightLooks:
    """Decides whether a step that is not recorded is looked at.

    Args:
        budget: Share of training time that all diagnostics may take.
        tell: Takes a sentence on what was given up, once.
        total: Steps of the fit, where they are known.
        clock: Seconds.
    """

    budget: float
    tell: Callable[[str], None]
    total: int | None = None
    clock: Callable[[], float] = perf_counter
    every: int = 1
    """Every so many steps one is looked at."""
    _first: int | None = None
    """The first step that was asked for."""
    _last: int = -1
    """The last step of the trial that was looked at, and when it began."""
    _since: float = 0.0
    _seconds: dict[int, list[float]] = field(default_factory=lambda: {NEAR: [], FAR: []})
    """Steps from look to look -> what they took together."""
    _own: list[float] = field(default_factory=list)
    _settled: bool = False

    def at(self, step: int) -> bool:
        """Whether this step, which begins, is looked at."""
        if self._first is None:
            self._first = step
        looked = self._look_from(step) == step
        if not self._settled and step >= self._first + TRIAL_FROM:
            if looked and step != self._last:
                self._time(step)
            if step >= self._first + TRIAL_FROM + TRIAL_STEPS:
                self._settle()
        return looked

    def until_next(self, step: int) -> int:
        """Steps from this one to the next that is looked at."""
        return self._look_from(step + 1) - step

    def plain_step(self, looked: bool, own: float) -> None:
        """A step that was not recorded is over.

        Args:
            looked: Whether it was looked at.
            own: The recorder's own seconds.
        """
        if looked and not self._settled:
            self._own.append(own)

    def _look_from(self, step: int) -> int:
        """The first step from this one on that is looked at."""
        start = (step if self._first is None else self._first) + TRIAL_FROM
        if self._settled or step < start:
            return -(-step // self.every) * self.every
        before = (step - start) % (NEAR + FAR)
        return step + next(at - before for at in (0, NEAR, NEAR + FAR) if at >= before)

    def _time(self, step: int) -> None:
        now = self.clock()
        if step - self._last in self._seconds:
            self._seconds[step - self._last].append(now - self._since)
        self._last, self._since = step, now

    def _settle(self) -> None:
        self._settled = True
        near, far = self._seconds[NEAR], self._seconds[FAR]
        if min(len(near), len(far)) < 2 or not self._own:
            return
        step = (median(far) - median(near)) / (FAR - NEAR)
        look = (FAR * median(near) - NEAR * median(far)) / (FAR - NEAR)
        error = math.hypot(FAR * _median_error(near), NEAR * _median_error(far)) / (FAR - NEAR)
        # less than two standard errors besides the recorder's own seconds is noise
        own = median(self._own)
        cost = own + max(0.0, look - own - 2 * error)
        paid = self.budget * step
        if paid <= 0:
            return
        often, seldom = math.ceil(cost / (SHARE * paid)), math.ceil(cost / (FRUGAL * paid))
        plenty = 1 if self.total is None else self.total // PLENTY
        self.every = max(1, often, min(seldom, plenty))
        if self.every > 1:
            self.tell(
                f"The black box and the history look at every {_ordinal(self.every)} step: looking takes "
                f"{1e6 * cost:.0f} us, and a step {1e3 * step:.2g} ms."
            )


def _median_error(values: list[float]) -> float:
    """Standard error of a median, from the median distance to it."""
    middle = median(values)
    spread = 1.4826 * median(abs(value - middle) for value in values)
    return 1.2533 * spread / math.sqrt(len(values))


def _ordinal(number: int) -> str:
    teens = 10 <= number % 100 <= 20
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
