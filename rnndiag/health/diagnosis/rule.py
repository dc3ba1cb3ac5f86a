"""One rule of the diagnosis: from features to a cause with its evidence, or to nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rnndiag.health.diagnosis.diagnosis import Confidence, Evidence, Remedy
from rnndiag.health.diagnosis.features import Features
from rnndiag.health.diagnosis.layer_evidence import LARGEST_LOG, Dated

Group = Literal["structure", "data", "step", "start", "window", "later", "last resort"]
"""When a cause acts. Causes of one group act at one time; those of a later group may follow from an earlier one."""

Situation = Literal["broken", "diverged", "stuck", "at rest", "learning", "learned", "cannot_tell"]
"""The state by the losses, with `at rest` told apart from `learned`."""

BAD: frozenset[Situation] = frozenset({"diverged", "stuck", "at rest", "broken"})
UNLEARNED: frozenset[Situation] = BAD | {"learning"}
ALWAYS: frozenset[Situation] = UNLEARNED | {"learned", "cannot_tell"}


@dataclass(frozen=True)
class View:
    """What a rule is given."""

    features: Features
    situation: Situation

    @property
    def learning(self) -> bool:
        """A model that learns is told only what still holds at the last recording."""
        return self.situation == "learning"


@dataclass(frozen=True)
class Found:
    """What a rule found. `sentence` says what is so and what it means, without the remedy."""

    sentence: str
    evidence: tuple[Evidence, ...] = ()
    layer: str = ""
    confidence: Confidence = "high"
    remedy: Remedy | None = None


@dataclass(frozen=True)
class Rule:
    """A cause and when it is named.

    Attributes:
        cause: Its name; several rules may find the same one, and the first that fires names it.
        group: When it acts.
        situations: In which it may be named.
        find: The rule.
        alone: Named only if no rule before it fired.
    """

    cause: str
    group: Group
    situations: frozenset[Situation]
    find: Callable[[View], Found | None]
    alone: bool = False


def evidence(**numbers: Dated) -> tuple[Evidence, ...]:
    """Evidence of what was recorded, by name."""
    return tuple(
        Evidence(name, one.value, one.step)
        for name, one in numbers.items()
        if not math.isnan(one.value)
    )


# -- numbers in sentences ------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits at most: 0.0123, 1.4, 522."""
    return f"{value:.3g}"


def power(log: float) -> str:
    """10^-8.2 of ln c; in words where it is nothing."""
    if math.isinf(log) and log < 0:
        return "nothing"
    return (
        f"10^{log / math.log(10):.1f}"
        if log < math.log(0.1)
        else f"{math.exp(min(log, LARGEST_LOG)):.2g}"
    )


def percent(share: float) -> str:
    """70 %."""
    return f"{100 * share:.0f} %"
