"""The settings of one check: two-sided bounds, allowed change against the baseline, recordings, layers and severity."""

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
    """Smaller numbers violate the check."""
    max: float | None = None
    """Larger numbers violate the check."""
    window: str | None = None
    """The recordings that this check judges, if not those of the configuration."""
    change: str = "noise"
    """How the number is compared with a baseline, if comparable: `noise`, a percentage, or `off`."""
    shift: float = 0.10
    """Smallest change that is reported, as a share of the baseline."""
    level: Level = "fail"
    """`fail`, `warn` (prints, does not fail) or `off`."""
    layers: tuple[str, ...] = EVERY_LAYER
    """Names of the layers that the check applies to; `*` matches any part of a name."""
    min_recordings: int | None = None
    """Number of values that the check must rest on, if not that of the configuration."""
    configured: bool = False
    """Whether the user configured this check by name."""

    @property
    def bounded(self) -> bool:
        """Whether the number itself has a limit."""
        return self.min is not None or self.max is not None

    def but(self, **changes: object) -> Bounds:
        """A copy with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def side(self, value: float) -> Literal["low", "high"] | None:
        """The side on which the value violates the bounds; None if it does not. NaN violates every bound."""
        if self.min is not None and not value >= self.min:
            return "low"
        if self.max is not None and not value <= self.max:
            return "high"
        return None

    def covers(self, layer: str) -> bool:
        """Whether the check applies to this layer."""
        return any(fnmatchcase(layer, pattern) for pattern in self.layers)


def parse_percent(text: str) -> float:
    """`10%` as the share 0.1."""
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected a percentage such as '10%', not {text!r}")
    return float(match[1]) / 100
