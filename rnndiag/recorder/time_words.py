"""Time steps in a person's own unit: hours, samples, tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TimeWords:
    """`unit` = ("h", 1): one time step is one hour. A step of the recurrence spans `stride` of them."""

    unit: tuple[str, float] | None = None
    stride: int = 1

    def of(self, steps: float) -> str:
        """So many steps of the recurrence in the unit; empty without one."""
        if self.unit is None:
            return ""
        name, length = self.unit
        return f"{steps * self.stride * length:.3g} {name}"

    def in_brackets(self, steps: float) -> str:
        """' (11 h)', or nothing."""
        said = self.of(steps)
        return f" ({said})" if said else ""
