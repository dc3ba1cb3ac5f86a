"""Prints a message on stderr while work takes long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 2.0
"""Seconds before a message is printed."""


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Print the current activity after PATIENCE seconds, and at the end its duration."""
    told = threading.Event()

    def tell() -> None:
        told.set()
        sys.stderr.write(f"rnndiag: {what} ...\n")
        sys.stderr.flush()

    timer = threading.Timer(PATIENCE, tell)
    timer.daemon = True
    begun = time.monotonic()
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if told.is_set():
        sys.stderr.write(f"rnndiag: done in {time.monotonic() - begun:.0f} s\n")
