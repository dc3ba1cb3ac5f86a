"""The errors that rnndiag raises: one sentence on what happened, one on what to do."""

from __future__ import annotations

from numbers import Integral


class RnndiagError(Exception):
    """Base of all errors of rnndiag: `what` happened, with its values, and the `remedy`."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what} {remedy}".strip())
        self.what = what
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[RnndiagError], tuple[str, str]]:
        return type(self), (self.what, self.remedy)


class NotInstalled(RnndiagError):
    """A package that this call needs is not installed."""


class NotSupported(RnndiagError):
    """The model, the call or the option is outside of what can be measured exactly."""


class BadArgument(RnndiagError, ValueError):
    """An argument has an invalid value."""


def require_whole(name: str, value: object, remedy: str = "", least: int = 1) -> None:
    """Refuse an argument that is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise BadArgument(
            f"{name} is {value!r}.", remedy or f"Give a whole number, {least} or more."
        )


class CaptureFault(RnndiagError):
    """The captured parts of a forward or backward pass are inconsistent."""


class NotExact(RnndiagError):
    """A proof failed: the numbers cannot be trusted."""


class RunUnreadable(RnndiagError):
    """A run directory, or a requested part of it, cannot be read."""


class RunNotWritten(RnndiagError):
    """A recording could not be stored."""


class BadConfig(RnndiagError):
    """A configuration or a command line cannot be understood."""


class CannotJudge(RnndiagError):
    """A run cannot be judged: too few recordings, or nothing comparable."""
