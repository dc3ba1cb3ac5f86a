"""One finding: what a check saw, what it allows, what to do. Report, console, JUnit and pytest consume this type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Status = Literal["fail", "not_judged", "warn", "pass", "note"]
Change = Literal["identical", "within noise", "shifted", "out of bounds"]

STATUSES: tuple[Status, ...] = ("fail", "not_judged", "warn", "pass", "note")
"""Worst first."""

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
"""The check whose failure says that the recording itself is not to be trusted."""

OF_THE_RUN = frozenset({"damage", "unfinished", "overhead"})
"""Checks of the stored run itself: that they pass says nothing of the training, so nothing was judged by them."""


@dataclass(frozen=True)
class Finding:
    """What one check found in one layer of one run.

    `value` is the number that was compared and `text_value` the same number as it is printed, with its unit. `allowed`
    says what would have passed. `message` says what is so, `remedy` what to do. `details` are lines that begin with one
    of the words where, since, means, also, see, note.
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
    """A statement (status note) whose value lies outside of what the rule calls typical."""
    word: str = ""
    """The heading that this finding gives, in capitals, where it gives one."""
    run: str = ""
    """Name of the run."""
    baseline: str = ""
    """What the baseline had, as it is printed."""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"a finding cannot have the status {self.status!r}")

    @property
    def judged(self) -> bool:
        """Whether a number of the training was held against a limit.

        Checks of the stored run itself say nothing of the training, nor does a diagnosis that is only stated.
        """
        if self.check in OF_THE_RUN or (self.check == "diagnosis" and self.status != "fail"):
            return False
        return self.status in ("pass", "fail", "warn")

    def but(self, **changes: Any) -> Finding:
        """The same finding with some fields replaced."""
        return replace(self, **changes)

    def as_json(self) -> dict[str, Any]:
        """Plain types only; a value that is not finite becomes its name, as JSON has none for it."""
        plain = asdict(self)
        plain["details"] = list(self.details)
        if self.value is not None and not math.isfinite(self.value):
            plain["value"] = str(self.value)
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> Finding:
        """The finding that `as_json` wrote. Unknown keys, of a later version, are left out; wrong types raise."""
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


def worst(findings: Iterable[Finding]) -> Finding | None:
    """The finding to show first: by status, then notable ones, then the order in which they came."""
    ordered = sorted(findings, key=lambda f: (STATUSES.index(f.status), not f.notable))
    return ordered[0] if ordered else None
