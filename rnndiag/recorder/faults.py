"""Faults of the recorder itself: caught, told once, kept for the run; training goes on."""

from __future__ import annotations

import logging
import traceback
import warnings
from dataclasses import dataclass, field

from rnndiag.errors import RnndiagError

LIMIT = 3
"""A part that fails this often in a row is left alone for the rest of the fit."""

logger = logging.getLogger("rnndiag")


class RnndiagWarning(UserWarning):
    """Something that a person should know; training goes on."""


def tell(message: str) -> None:
    """Warn, and never raise: where warnings are errors, the message goes to the log `rnndiag` instead."""
    try:
        warnings.warn(message, RnndiagWarning, stacklevel=3)
    except RnndiagWarning:
        logger.warning(message)


@dataclass
class Faults:
    """What went wrong in the recorder during one fit."""

    strict: bool = False
    messages: list[str] = field(default_factory=list)
    """Told so far, each once, in order."""
    caught: int = 0
    last: str = ""
    """The latest fault, whether it was new or not."""
    _in_a_row: dict[str, int] = field(default_factory=dict)
    _new: list[str] = field(default_factory=list)
    _last_of: dict[str, str] = field(default_factory=dict)

    def guard(self, part: str, remedy: str = "") -> Guard:
        """`with faults.guard("part"):` an error inside is told once and kept; with `strict` it is raised."""
        return Guard(self, part, remedy)

    def succeeded(self, part: str) -> None:
        """The part has worked: what failed before is not in a row any more."""
        if self._in_a_row:
            self._in_a_row.pop(part, None)

    def add(self, part: str, error: Exception, remedy: str = "") -> None:
        """Keep a fault, and tell it if it is new."""
        count = self._in_a_row[part] = self._in_a_row.get(part, 0) + 1
        message = f"{part} failed: {describe(error)}"
        if not isinstance(error, RnndiagError):
            message += f" Training goes on. {remedy or _REMEDY}"
        if count == LIMIT:
            message += f" It failed {LIMIT} times in a row and is left out from here on."
        self.caught += 1
        self.last = self._last_of[part] = message
        if message not in self.messages:
            self.messages.append(message)
            self._new.append(message)
            tell(f"rnndiag: {message}")

    def gave_up(self, part: str) -> bool:
        """Whether the part has failed too often in a row to be tried again."""
        return self._in_a_row.get(part, 0) >= LIMIT

    @property
    def given_up(self) -> dict[str, str]:
        """Parts that are not tried again -> their last fault."""
        return {part: self._last_of[part] for part in self._in_a_row if self.gave_up(part)}

    def drain(self) -> list[str]:
        """The messages since the last call: they go into the next recording."""
        new, self._new = self._new, []
        return new


@dataclass(frozen=True)
class Guard:
    """Keeps an error in a part of the recorder from ending the training run."""

    faults: Faults
    part: str
    remedy: str = ""

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> bool:
        if error is None:
            self.faults.succeeded(self.part)
            return False
        if not isinstance(error, Exception) or self.faults.strict:
            return False
        self.faults.add(self.part, error, self.remedy)
        return True


_REMEDY = "To see where it comes from, fit once with GradientDiagnostics(strict=True)."


def describe(error: Exception) -> str:
    """The error in one sentence, with the line of code it came from where it is not one of rnndiag's own."""
    if isinstance(error, RnndiagError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}{where}.".replace("..", ".")
