"""One finding: what a check saw, what it allows, what to do. Used by report, console, JUnit and pytest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Status = Literal["fail", "not_judged", "warn", "pass", "note"]
Change = Literal["identical", "within noise", "shifted", "out of bounds"]

STATUSES: tuple[Status, ...] = ("fail", "not_judged", "warn", "pass", "note")
"""Statuses, worst first."""

CHANGES: tuple[Change, ...] = ("identical", "within noise", "shifted", "out of bounds")

_TEXTS = (
    "check",
    "status",
    "layer",
    "text_value",
    "allowed",
    "message",
    "remedy",
    "word",
    "run",
    "baseline",
)

UNTRUSTED = "residual"
"""The check whose failure means that the recording itself cannot be trusted."""

OF_THE_RUN = frozenset({"damage", "unfinished", "overhead"})
"""Checks of the stored run itself: their pass says nothing about the training, so it judges nothing."""


@dataclass(frozen=True)
class Finding:
    """What one check found in one layer of one run.

    `value` is the number that was compared and `text_value` the same number as printed, with its unit. `allowed` says
    what would have passed. `message` states the observation, `remedy` what to do. `details` are lines that begin with
    one of the words where, since, means, also, see, note.
    """

    check: str
    status: Status
    layer: str = ""
    value: float | None = None
    text_value: str = ""
    allowed: str = ""
    since_step: int | None = None
    message: str = ""
    remedy: str = ""
    change: Change | None = None
    details: tuple[str, ...] = ()
    notable: bool = False
    """For status note: whether the value lies outside of the rule's typical range."""
    word: str = ""
    """A word in capitals for use as heading; empty if there is none."""
    run: str = ""
    """Name of the run."""
    baseline: str = ""
    """The baseline's value as printed."""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"a finding cannot have the status {self.status!r}")

    @property
    def severity(self) -> tuple[int, bool]:
        """Sort key, worst first: by status, and within a status notable ones first."""
        return STATUSES.index(self.status), not self.notable

    @property
    def judged(self) -> bool:
        """Whether a number of the training was compared with a limit.

        False for checks of the stored run itself, and for a diagnosis that is only stated.
        """
        if self.check in OF_THE_RUN or (self.check == "diagnosis" and self.status != "fail"):
            return False
        return self.status in ("pass", "fail", "warn")

    def but(self, **changes: Any) -> Finding:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types; a non-finite value is replaced by its name, as JSON has none for it."""
        plain = asdict(self)
        plain["details"] = list(self.details)
        if self.value is not None and not math.isfinite(self.value):
            plain["value"] = str(self.value)
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> Finding:
        """Inverse of `as_json`. Unknown keys of a later version are ignored; wrong types raise."""
        if not isinstance(plain, Mapping):
            raise TypeError("a finding is an object")
        known = {key: plain[key] for key in cls.__dataclass_fields__ if key in plain}
        for key in _TEXTS:
            if not isinstance(known.get(key, ""), str):
                raise TypeError(f"{key} of a finding is a text")
        if known.get("value") is not None:
            known["value"] = float(known["value"])
        if known.get("since_step") is not None:
            known["since_step"] = int(known["since_step"])
        known["notable"] = bool(known.get("notable", False))
        known["details"] = tuple(str(line) for line in known.get("details", ()))
        if known.get("change") not in (None, *CHANGES):
            raise ValueError(f"a change cannot be called {known['change']!r}")
        return cls(**known)
