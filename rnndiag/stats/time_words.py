"""Time steps in the user's own unit: hours, samples, tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rnndiag.store.text import mapping


@dataclass(frozen=True)
class TimeWords:
    """`unit` = ("h", 1): one time step is one hour. A step of the recurrence spans `stride` of them."""

    unit: tuple[str, float] | None = None
    stride: int = 1

    @classmethod
    def of_provenance(cls, provenance: Mapping[str, Any]) -> TimeWords:
        """The unit that the recording callback was given; empty if the run stores none."""
        config = mapping(provenance, "config")
        unit, stride = config.get("time_unit"), config.get("stride", 1)
        if not isinstance(unit, list | tuple) or len(unit) != 2 or not _is_number(unit[1]):
            return cls()
        return cls((str(unit[0]), float(unit[1])), int(stride) if _is_number(stride) else 1)

    def of(self, steps: float) -> str:
        """A number of steps of the recurrence in the user's unit; empty without a unit."""
        if self.unit is None:
            return ""
        name, length = self.unit
        return f"{steps * self.stride * length:.3g} {name}"

    def in_brackets(self, steps: float) -> str:
        """' (11 h)', or empty without a unit."""
        words = self.of(steps)
        return f" ({words})" if words else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
