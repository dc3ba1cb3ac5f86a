"""The form of a rule: a small function from a layer's numbers to one number per recording, and its meaning.

A rule lives in its own file under `health/rules/` and registers itself with `@rule(...)`; adding one touches that file
alone.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from rnndiag.health.bounds import Bounds
from rnndiag.health.finding import Status

if TYPE_CHECKING:
    from rnndiag.health.numbers import LayerNumbers


@dataclass(frozen=True)
class RuleSeries:
    """One number per recording: `steps` (n,) training steps, `values` (n,)."""

    steps: np.ndarray
    values: np.ndarray
    note: str = ""
    """How the number was determined, if that needs explaining."""
    advice: str = ""
    """A sentence that recommends a setting."""
    rests_on: int | None = None
    """Number of recordings pooled into one value; None: every value is of one recording."""
    known_above: float = math.inf
    """An infinite value is only known to exceed this number."""

    @property
    def count(self) -> int:
        """Number of recordings that the number rests on."""
        return int(np.sum(~np.isnan(self.values))) if self.rests_on is None else self.rests_on


Range = tuple[float | None, float | None]
Reduce = Literal["median", "mean", "max", "last"]
Owner = Literal["layer", "model", "both"]


@dataclass(frozen=True)
class Rule:
    """A check: where its number comes from, when it is wrong for every user, and what to do."""

    name: str
    measure: Callable[[LayerNumbers], RuleSeries]
    meaning: str
    """The number in a few words."""
    statement: str
    """One sentence on the number; fields {value} {ceil} {T} {percent} {layer}."""
    rank: int
    """Position in the order in which faults are shown: causes before their consequences."""
    too_low: str = ""
    """What to do if the number is below the allowed or typical range."""
    too_high: str = ""
    excuse: str = ""
    """When the number is no fault: appended to the sentence in a note, but not in a failure."""
    infinite: str = ""
    """The sentence used instead of `statement` for an infinite number."""
    unit: str = ""
    digits: int = 3
    percent: bool = False
    """Whether the number is a share, printed in %."""
    owner: Owner = "layer"
    reduce: Reduce = "median"
    defaults: Bounds = field(default_factory=Bounds)
    """Bounds without any configuration: only what is wrong for every user."""
    typical: Callable[[LayerNumbers], Range] = lambda numbers: (None, None)
    """Typical range: a note outside of it is worth a heading, though no fault."""
    words: tuple[str, str] = ("", "")
    """The headings for a number that is too low, and too high."""
    causes: Mapping[str, str] = field(default_factory=dict)
    """Remedies for a number that is too low, by the cause stored in the recording."""
    comparable: bool = True
    """Whether the number is scale-free and can be compared with a baseline."""
    floor: float = 0.0
    """Changes against a baseline are shares of the baseline's number, but at least of this size."""
    family: str = ""
    """Rules of one family read the same numbers, so one of them moving does not explain another."""
    of_the_run: bool = False
    """Whether the rule examines the stored run itself (damage, a cut-off end) and not numbers of the training.

    Such a rule needs no recordings to rest on, and its pass says nothing about the training.
    """
    of_weights: bool = False
    """Whether the number depends on the weights alone: without noise from batches one value is enough."""
    violation: Status = "fail"
    """The status of a number outside of its bounds: `not_judged` if it means that no number can be trusted."""

    def format(self, value: float) -> str:
        """The number as printed, without its unit: the same digits everywhere."""
        if np.isnan(value):
            return "not a number"
        if np.isinf(value):
            return "infinite" if value > 0 else "-infinite"
        if self.percent:
            return f"{100 * value:.1f} %"
        if value == 0 or abs(value) >= 1e-3:
            whole = abs(value) >= 1e5 or (self.digits == 0)
            return f"{value:,.0f}" if whole else f"{value:.{self.digits}f}"
        return f"{value:.2g}"

    def text(self, value: float, bounds: Bounds) -> str:
        """The number as printed, with its unit, in enough digits to differ from a limit that it violates."""
        return f"{self.beside(value, bounds)} {self.unit}".strip()

    def beside(self, value: float, bounds: Bounds) -> str:
        """The number without its unit, in enough digits to differ from a limit that it violates."""
        shown = self.format(value)
        limit = bounds.min if bounds.side(value) == "low" else bounds.max
        if limit is None or bounds.side(value) is None or not np.isfinite(value):
            return shown
        scale, sign = (100.0, " %") if self.percent else (1.0, "")
        for digits in range(3, 18):
            if float(shown.removesuffix(" %").replace(",", "")) != scale * limit:
                break
            shown = f"{scale * value:.{digits}g}{sign}"
        return shown


REGISTRY: dict[str, Rule] = {}


def rule(name: str, **facts: object) -> Callable[[Callable[[LayerNumbers], RuleSeries]], Rule]:
    """Decorator that registers a function as the measure of a new rule."""

    def register(measure: Callable[[LayerNumbers], RuleSeries]) -> Rule:
        if name in REGISTRY:
            raise ValueError(f"the rule {name!r} is registered twice")
        REGISTRY[name] = Rule(name=name, measure=measure, **facts)  # type: ignore[arg-type]
        return REGISTRY[name]

    return register


@cache
def all_rules() -> Mapping[str, Rule]:
    """Every rule under `health/rules/`, in the order in which faults are shown."""
    from rnndiag.health import rules

    for module in pkgutil.iter_modules(rules.__path__):
        importlib.import_module(f"{rules.__name__}.{module.name}")
    return dict(sorted(REGISTRY.items(), key=lambda item: (item[1].rank, item[0])))
