"""The default name of a run directory, fixed when the callback is made."""

from __future__ import annotations

import time
from pathlib import Path

from rnndiag.store.starts import holds_run

ROOT = "runs"

_taken: set[Path] = set()


def default_directory(root: str | Path = ROOT) -> Path:
    """runs/2026-11-21T02-44-10, local time; a second one within that second gets the suffix -2."""
    first = Path(root) / time.strftime("%Y-%m-%dT%H-%M-%S")
    path, number = first, 1
    while path.absolute() in _taken or holds_run(path):
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    _taken.add(path.absolute())
    return path
