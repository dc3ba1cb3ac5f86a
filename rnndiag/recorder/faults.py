"""Handles errors in the recorder itself: they are caught, reported once and stored; training continues."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from rnndiag.errors import RnndiagError

LIMIT = 3
"""A part that fails this often in a row is disabled for the rest of the fit."""

logger = logging.getLogger("rnndiag")


class RnndiagWarning(UserWarning):
    """A warning for the user that does not stop training."""


def warn(message: str) -> None:
    """Warn without ever raising: if warnings are errors, the message goes to the log `rnndiag` instead."""
    try:
        warnings.warn(message, RnndiagWarning, stacklevel=3)
    except RnndiagWarning:
        logger.warning(message)


@dataclass
class Faults:
    """The errors of the recorder during one fit."""

    strict: bool = False
    messages: list[str] = field(default_factory=list)
    """Distinct messages reported so far, in order."""
    caught: int = 0
    last: str = ""
    """Message of the latest fault, new or repeated."""
    _in_a_row: dict[str, int] = field(default_factory=dict)
    _new: list[str] = field(default_factory=list)
    _last_of: dict[str, str] = field(default_factory=dict)
    _reported: set[tuple[str, str]] = field(default_factory=set)
    out_of_memory: bool = False
    """Whether an allocation has failed since the step began, which ends its recording."""

    def guard(self, part: str, remedy: str = "") -> Guard:
        """Context in which an error is reported once and stored; with `strict` it is raised."""
        return Guard(self, part, remedy)

    def succeeded(self, part: str) -> None:
        """Reset the count of failures in a row of a part."""
        if self._in_a_row:
            self._in_a_row.pop(part, None)

    def add(self, part: str, error: Exception, remedy: str = "") -> None:
        """Store a fault, and report it if it is new: one that differs only in numbers from an earlier one is not.

        Args:
            part: What failed.
            error: How.
            remedy: What a person can do. Without one: how to see where the fault comes from.
        """
        failing = part
        self._in_a_row[part] = self._in_a_row.get(part, 0) + 1
        no_memory = is_out_of_memory(error)
        if no_memory:
            self.out_of_memory = True
            part, remedy = "a recording", _NO_MEMORY
        message = f"{part} failed: {describe(error)}"
        if not isinstance(error, RnndiagError):
            message += f" Training goes on. {remedy or _REMEDY}"
        self.caught += 1
        self.last = self._last_of[failing] = message
        key = (part, "" if no_memory else _place(error))
        if key not in self._reported:
            self._reported.add(key)
            self.messages.append(message)
            self._new.append(message)
            warn(f"rnndiag: {message}")
        # one fault is one warning: the run's end names the part
        if self._in_a_row[failing] == LIMIT:
            logger.info("rnndiag: %s failed %d times in a row and is left out.", failing, LIMIT)

    def handler(self, part: str) -> Callable[[Exception], None]:
        """A function for hooks that takes their exceptions: adds them, or raises with `strict`."""

        def handle(error: Exception) -> None:
            if self.strict:
                raise error
            self.add(part, error)

        return handle

    def gave_up(self, part: str) -> bool:
        """Whether the part has failed too often in a row to be tried again."""
        return self._in_a_row.get(part, 0) >= LIMIT

    @property
    def given_up(self) -> dict[str, str]:
        """Disabled part -> its last fault."""
        return {part: self._last_of[part] for part in self._in_a_row if self.gave_up(part)}

    def drain(self) -> list[str]:
        """The messages since the last call, for the next recording."""
        new, self._new = self._new, []
        return new


@dataclass(frozen=True)
class Guard:
    """Context manager that keeps an error in a part of the recorder from ending training."""

    faults: Faults
    part: str
    remedy: str = ""

    def __enter__(self) -> None:
        """Required by the protocol; all work is in `__exit__`."""

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


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on any device."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error)


def _place(error: Exception) -> str:
    """Type and source line of an error; for rnndiag's own errors their message."""
    if isinstance(error, RnndiagError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(error)
    return f"{type(error).__name__} {where}"


_NO_MEMORY = "That step is not recorded. Give fewer measures, fewer samples or a smaller seam."
_REMEDY = "To see where it comes from, fit once with GradientDiagnostics(strict=True)."


def describe(error: Exception) -> str:
    """The error in one sentence, with its source line unless it is one of rnndiag's own."""
    if isinstance(error, RnndiagError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}{where}.".replace("..", ".")
