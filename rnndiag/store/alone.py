"""Only one process at a time rewrites a run."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rnndiag.errors import RunNotWritten


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the run directory for the time of a rewrite; RunNotWritten where another process does.

    The system lets go of it with the process, so nothing is left behind by a kill. Where it has no such locks, or the
    file system does not support them, nobody is kept out.
    """
    if not root.is_dir() or os.name == "nt":
        yield
        return
    descriptor = os.open(root, os.O_RDONLY)
    try:
        _lock(descriptor, root)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, root: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunNotWritten(
            f"Another process is compacting {root}.", "Wait until it is done."
        ) from None
    except OSError as fault:
        if fault.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.EBADF):
            raise
