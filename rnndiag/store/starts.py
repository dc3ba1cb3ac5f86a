"""Numbers the starts of a run, and finds a free directory for a new run."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rnndiag.errors import RunNotWritten
from rnndiag.store import limits, tar
from rnndiag.store.segment import SegmentName
from rnndiag.store.source import LocalFile
from rnndiag.store.text import from_json

_SAME_LAUNCH_SECONDS = 600.0


def segments_of(path: Path) -> list[SegmentName]:
    """Names of all segments in a run directory."""
    try:
        found = (SegmentName.parse(name) for name in os.listdir(path / "recordings"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in found if name is not None)


def holds_run(path: str | os.PathLike[str]) -> bool:
    """Whether a directory holds a run."""
    return bool(segments_of(Path(path)))


def free_directory(path: str | os.PathLike[str]) -> Path:
    """The path itself if no run is there, else the first free one of path-2, path-3, ..."""
    given = Path(path)
    number, free = 1, given
    while holds_run(free):
        number += 1
        free = given.with_name(f"{given.name}-{number}")
    return free


def refuse_used(path: Path, rank: int) -> None:
    """Raise if the directory already holds a run: a new fit never reuses one."""
    if any(name.rank == rank for name in segments_of(path)):
        raise RunNotWritten(
            f"{path} already holds a run.",
            f"Record into another directory ({free_directory(path)} is free), or say from which step it is resumed.",
        )


def next_start(path: Path, rank: int, resumed_from_step: int | None) -> int:
    """The number of this start: one more than any before; ranks of one launch share a number.

    A slow rank may already see the files of other ranks of its launch. They are told apart from files of an earlier
    launch by the step that they resumed from and by their age.
    """
    names = segments_of(path)
    if resumed_from_step is None or not names:
        return 0
    latest = max(name.start for name in names)
    mine = max((name.start for name in names if name.rank == rank), default=-1)
    of_latest = [name for name in names if name.start == latest]
    if mine < latest and any(_same_launch(path, name, resumed_from_step) for name in of_latest):
        return latest
    return latest + 1


def _same_launch(path: Path, name: SegmentName, resumed_from_step: int) -> bool:
    try:
        file = LocalFile(path / "recordings" / name.file)
        found = tar.header(file.read(0, tar.BLOCK), 0)
        size = min(found.size, limits.JSON_BYTES + 1) if found else 0
        facts = from_json(file.read(tar.BLOCK, size))
        file.close()
    except (OSError, ValueError):
        return False
    age = time.time() - float(facts.get("started") or 0.0)
    return facts.get("resumed_from_step") == resumed_from_step and age < _SAME_LAUNCH_SECONDS
