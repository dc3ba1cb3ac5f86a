"""Names the directory of a fit: a new one, or that of the run that it continues."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnndiag.store.starts import free_directory, holds_run

ROOT = "runs"

_taken: set[Path] = set()
"""Names given to runs that may not be on the disk yet."""


@dataclass(frozen=True)
class RunPlace:
    """The directory of a run, and the step from which it continues, if it does."""

    path: Path
    resumed_from_step: int | None = None
    message: str = ""
    """A sentence on the choice for the user; empty if there is nothing to say."""


def chosen_directory(
    wanted: Path,
    step: int = 0,
    checkpoint: Mapping[str, Any] | None = None,
    dirpath: str | None = None,
    wrote_before: bool = False,
) -> RunPlace:
    """The directory of a fit that starts at `step`.

    A checkpoint of this callback continues its run, unless another dirpath was given since. The same callback in a
    Trainer that continues a fit continues its run too. Everything else is a new fit, and never writes into an existing
    run.
    """
    if step > 0 and checkpoint is not None and checkpoint.get("dirpath", "") == (dirpath or ""):
        before = Path(checkpoint["run_dir"])
        if holds_run(before):
            return RunPlace(before, step)
    if step > 0 and wrote_before and holds_run(wanted):
        return RunPlace(wanted, step)
    free = free_directory(wanted)
    if free == wanted:
        return RunPlace(wanted)
    return RunPlace(
        free, message=f"rnndiag: {wanted} holds a run already; this one is written to {free}."
    )


def default_directory(root: str | Path = ROOT) -> Path:
    """runs/2026-11-21T02-44-10, local time; a second one within that second gets the suffix -2."""
    first = Path(root) / time.strftime("%Y-%m-%dT%H-%M-%S")
    path, number = first, 1
    while path.absolute() in _taken or holds_run(path):
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    _taken.add(path.absolute())
    return path
