"""The form of a diagnosis rule: from features to a cause with its evidence, or None."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rnndiag.health.diagnosis.diagnosis import Confidence, Evidence, Remedy
from rnndiag.health.diagnosis.features import Features
from rnndiag.health.diagnosis.layer_evidence import LARGEST_LOG, Dated

Group = Literal["structure", "data", "step", "start", "window", "later", "last resort"]
"""When a cause acts. Causes of a later group may follow from those of an earlier one."""

Situation = Literal["broken", "diverged", "stuck", "at rest", "learning", "learned", "cannot_tell"]
"""The state judged by the losses, with `at rest` distinguished from `learned`."""

BAD: frozenset[Situation] = frozenset({"diverged", "stuck", "at rest", "broken"})
UNLEARNED: frozenset[Situation] = BAD | {"learning"}
ALWAYS: frozenset[Situation] = UNLEARNED | {"learned", "cannot_tell"}


@dataclass(frozen=True)
class View:
    """The input of a rule."""

    features: Features
    situation: Situation

    @property
    def learning(self) -> bool:
        """Whether the model learns; then only causes that still hold at the last recording are named."""
        return self.situation == "learning"


@dataclass(frozen=True)
class Found:
    """The result of a rule. `sentence` states the observation and its meaning, without the remedy."""

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
    """Evidence from keyword arguments, name -> recorded number; NaN is left out."""
    return tuple(
        Evidence(name, one.value, one.step)
        for name, one in numbers.items()
        if not math.isnan(one.value)
    )


# -- numbers in sentences ------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A number with at most three digits: 0.0123, 1.4, 522."""
    return f"{value:.3g}"


def power(log: float) -> str:
    """ln c as a power of ten, such as 10^-8.2; in words if it is zero."""
    if math.isinf(log) and log < 0:
        return "nothing"
    return (
        f"10^{log / math.log(10):.1f}"
        if log < math.log(0.1)
        else f"{math.exp(min(log, LARGEST_LOG)):.2g}"
    )


def percent(share: float) -> str:
    """A share as text, such as 70 %."""
    return f"{100 * share:.0f} %"
