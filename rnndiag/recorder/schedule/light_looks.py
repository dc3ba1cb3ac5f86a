"""Which steps between recordings are looked at: all of them, or every n-th where the budget does not pay for all.

Looking at a step means the norm of its gradients, its line in the history, and the black box's light hooks. That costs
the same whatever the step takes, so short steps cannot pay for it. Own seconds are timed where they are spent; what
hooks cost torch itself shows only in the length of the step. Hence a trial: once the training is warm, steps are looked
at and left alone in turns, and the difference of the two medians is what looking costs besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

TRIAL_FROM = 200
"""Plain steps before the trial: up to then every step is looked at, so that a short fit has its whole history."""
TRIAL_STEPS = 40
SHARE = 1 / 3
"""Of the budget, what looking may take; the rest is for recordings."""


@dataclass
class LightLooks:
    """Decides whether a step that is not recorded is looked at.

    Args:
        budget: Share of training time that all diagnostics may take.
        tell: Takes a sentence on what was given up, once.
    """

    budget: float
    tell: Callable[[str], None]
    every: int = 1
    """Every so many steps one is looked at."""
    _plain: int = 0
    _seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    _own: list[float] = field(default_factory=list)

    @property
    def _in_trial(self) -> bool:
        return TRIAL_FROM <= self._plain < TRIAL_FROM + TRIAL_STEPS

    def at(self, step: int) -> bool:
        """Whether this step is looked at."""
        return step % (2 if self._in_trial else self.every) == 0

    def until_next(self, step: int) -> int:
        """Steps from this one to the next that is looked at."""
        every = 2 if self._in_trial else self.every
        return every - step % every

    def plain_step(self, looked: bool, seconds: float, own: float) -> None:
        """A step that was not recorded is over.

        Args:
            looked: Whether it was looked at.
            seconds: What it took without the recorder's own seconds.
            own: The recorder's own seconds.
        """
        if self._in_trial:
            self._seconds[looked].append(seconds)
            if looked:
                self._own.append(own)
        self._plain += 1
        if self._plain == TRIAL_FROM + TRIAL_STEPS and min(map(len, self._seconds.values())) > 1:
            self._settle()

    def _settle(self) -> None:
        looked, alone = self._seconds[True], self._seconds[False]
        step = median(alone)
        difference = median(looked) - step
        # two standard errors of the difference of medians: less than that is noise
        noise = 2 * math.hypot(_median_error(looked), _median_error(alone))
        cost = median(self._own) + max(0.0, difference - noise)
        allowed = SHARE * self.budget * step
        self.every = max(1, math.ceil(cost / allowed)) if allowed > 0 else 1
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
