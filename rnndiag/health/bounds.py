"""What one check allows: two-sided bounds, a change against the baseline, which recordings and layers, how loudly."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

Level = Literal["fail", "warn", "off"]

EVERY_LAYER = ("*",)

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)


@dataclass(frozen=True)
class Bounds:
    """The limits of one check. None means: no limit, or the default of all checks."""

    min: float | None = None
    """A smaller number violates the check."""
    max: float | None = None
    """A larger number violates the check."""
    window: str | None = None
    """The recordings that this check judges, where not those of all checks."""
    change: str = "noise"
    """`noise`, a percentage, or `off`: how the number is compared with a baseline, where it is comparable."""
    shift: float = 0.10
    """Never report a smaller change than this share of the baseline."""
    level: Level = "fail"
    """`fail`, `warn` (prints, does not fail) or `off`."""
    layers: tuple[str, ...] = EVERY_LAYER
    """Names of the layers that the check is meant for, with `*` for any part of a name."""
    min_recordings: int | None = None
    """How many values the check must rest on, where not as many as the other checks."""
    configured: bool = False
    """Whether a person asked for this check by name."""

    @property
    def bounded(self) -> bool:
        """Whether the number itself has a limit."""
        return self.min is not None or self.max is not None

    def but(self, **changes: object) -> Bounds:
        """The same bounds with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def side(self, value: float) -> Literal["low", "high"] | None:
        """On which side the value violates the bounds. What is not a number violates every bound."""
        if self.min is not None and not value >= self.min:
            return "low"
        if self.max is not None and not value <= self.max:
            return "high"
        return None

    def covers(self, layer: str) -> bool:
        """Whether the check is meant for this layer."""
        return any(fnmatchcase(layer, pattern) for pattern in self.layers)


def parse_percent(text: str) -> float:
    """The share that `10%` stands for."""
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected a percentage such as '10%', not {text!r}")
    return float(match[1]) / 100
