"""Prints a message on stderr while work takes long."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

PATIENCE = 2.0
"""Seconds before a message is printed."""


class Progress:
    """Prints the current activity after PATIENCE seconds, and at the end its duration."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._timer = threading.Timer(PATIENCE, self._tell)
        self._timer.daemon = True
        self._begun = time.monotonic()
        self._told = False

    def _tell(self) -> None:
        self._told = True
        sys.stderr.write(f"rnndiag: {self._what} ...\n")
        sys.stderr.flush()

    def __enter__(self) -> Progress:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._told and fault is None:
            sys.stderr.write(f"rnndiag: done in {time.monotonic() - self._begun:.0f} s\n")
