"""Selects the steps between recordings that are examined: all, or every n-th if the budget does not pay for all.

Examining a step means computing its gradient norm, adding it to the history, and light hooks for the black box. The
cost is independent of the step's duration, so short steps cannot pay for it. The recorder's own seconds are timed where
they are spent; the cost for torch itself and for the following steps, whose code was driven out of the caches, shows
only in their duration. Hence a trial: once training is warm, examined steps are alternately eight and twenty-four steps
apart. The time from one to the next covers eight steps and an examination, or twenty-four steps and an examination; the
two medians give both costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

TRIAL_FROM = 200
"""Steps before the trial, all of which are examined, so that a short fit has its whole history."""
NEAR, FAR = 8, 24
"""Distances between examined steps in the trial."""
TRIAL_STEPS = 10 * (NEAR + FAR)
SHARE = 1 / 3
"""Share of the budget for examining steps; the rest is for recordings."""
FRUGAL = 1 / 10
"""Share of the budget for examining steps if that still gives `PLENTY` of them."""
PLENTY = 256
"""Number of examined steps that suffice for the history of a fit of known length."""


@dataclass
class ExaminedSteps:
    """Decides whether a step that is not recorded is examined.

    Args:
        budget: Share of training time that all diagnostics may take.
        report: Takes a sentence on what was given up, once.
        total: Steps of the fit, where they are known.
        clock: Seconds.
    """

    budget: float
    report: Callable[[str], None]
    total: int | None = None
    clock: Callable[[], float] = perf_counter
    every: int = 1
    """Distance between examined steps."""
    _first: int | None = None
    """The first step passed to `at`."""
    _last: int = -1
    """The last examined step of the trial."""
    _since: float = 0.0
    _seconds: dict[int, list[float]] = field(default_factory=lambda: {NEAR: [], FAR: []})
    """Distance in steps -> durations in seconds from one examined step to the next."""
    _own: list[float] = field(default_factory=list)
    _settled: bool = False

    def at(self, step: int) -> bool:
        """Whether this step, about to begin, is examined."""
        if self._first is None:
            self._first = step
        examined = self._next_from(step) == step
        if not self._settled and step >= self._first + TRIAL_FROM:
            if examined and step != self._last:
                self._time(step)
            if step >= self._first + TRIAL_FROM + TRIAL_STEPS:
                self._settle()
        return examined

    def until_next(self, step: int) -> int:
        """Number of steps from this one to the next examined one."""
        return self._next_from(step + 1) - step

    def plain_step(self, examined: bool, own: float) -> None:
        """Account for the end of a step that was not recorded.

        Args:
            examined: Whether it was examined.
            own: The recorder's own seconds.
        """
        # Before the trial the code that runs here is still in the caches, from the step before.
        if examined and self._seconds[FAR] and not self._settled:
            self._own.append(own)

    def _next_from(self, step: int) -> int:
        """The first examined step from this one on."""
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
        """End the trial: choose `every` from the measured cost of an examination and of a step."""
        self._settled = True
        near, far = self._seconds[NEAR], self._seconds[FAR]
        if min(len(near), len(far)) < 2 or not self._own:
            return
        step = (median(far) - median(near)) / (FAR - NEAR)
        examination = (FAR * median(near) - NEAR * median(far)) / (FAR - NEAR)
        error = math.hypot(FAR * _median_error(near), NEAR * _median_error(far)) / (FAR - NEAR)
        # beyond the recorder's own seconds, less than two standard errors is noise
        own = median(self._own)
        cost = own + max(0.0, examination - own - 2 * error)
        paid = self.budget * step
        if paid <= 0:
            return
        often, seldom = math.ceil(cost / (SHARE * paid)), math.ceil(cost / (FRUGAL * paid))
        plenty = 1 if self.total is None else self.total // PLENTY
        self.every = max(1, often, min(seldom, plenty))
        if self.every > 1:
            self.report(
                f"The black box and the history look at every {_ordinal(self.every)} step: looking takes "
                f"{1e6 * cost:.0f} us, and a step {1e3 * step:.2g} ms."
            )


def _median_error(values: list[float]) -> float:
    """Standard error of a median, from the median absolute deviation."""
    middle = median(values)
    spread = 1.4826 * median(abs(value - middle) for value in values)
    return 1.2533 * spread / math.sqrt(len(values))


def _ordinal(number: int) -> str:
    teens = 10 <= number % 100 <= 20
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
