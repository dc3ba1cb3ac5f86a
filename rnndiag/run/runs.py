"""`Runs`: several runs opened together."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from rnndiag.errors import RunUnreadable
from rnndiag.run.run import Run, open_run
from rnndiag.store.redact import redact_addresses
from rnndiag.store.starts import holds_run

if TYPE_CHECKING:
    import pandas


class Runs(Sequence[Run]):
    """Several runs in the order of their paths. `unreadable` holds one sentence for each that could not be opened."""

    def __init__(self, runs: Sequence[Run], unreadable: Sequence[str] = ()) -> None:
        self._runs = tuple(runs)
        self.unreadable = tuple(unreadable)

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, position: int) -> Run: ...
    @overload
    def __getitem__(self, position: slice) -> Runs: ...
    def __getitem__(self, position: int | slice) -> Run | Runs:
        if isinstance(position, slice):
            return Runs(self._runs[position], self.unreadable)
        return self._runs[position]

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def __repr__(self) -> str:
        return f"<{len(self)} runs: {', '.join(run.name for run in self)}>"

    @property
    def names(self) -> tuple[str, ...]:
        """Distinct names of the runs: their paths below the folder that they share."""
        paths = [str(run.path) for run in self]
        if len(set(paths)) < 2:
            return tuple(run.name for run in self)
        shared = os.path.commonpath(paths)
        return tuple(os.path.relpath(path, shared) for path in paths)

    def to_frame(self, quantity: str | None = None, layer: str | None = None) -> pandas.DataFrame:
        """The numbers of all runs as one long pandas table.

        Args:
            quantity: Name of one quantity. None: all.
            layer: Name of one layer. None: all.

        Returns:
            The tables of `Run.to_frame` below each other, with a first column `run`.
        """
        from rnndiag.run.frames import joined

        return joined(dict(zip(self.names, self, strict=True)), quantity, layer)


def open_runs(pattern: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Runs:
    """Open several runs.

    Args:
        pattern: A path, a pattern such as `logs/**`, or several of them. Of a folder without a run, the runs directly
            in it are opened.

    Returns:
        The runs. One that cannot be read is named in `.unreadable`.

    Raises:
        RunUnreadable: Nothing that was found is a run.

    Example:
        >>> [run.name for run in rnndiag.open_runs("logs")]
        ['exp1']
    """
    if isinstance(pattern, (str, os.PathLike)):
        pattern = [pattern]
    patterns = [os.fspath(entry) for entry in pattern]
    found: dict[Path, None] = {}
    missing: list[str] = []
    for text in patterns:
        before = len(found)
        matches = [text] if os.path.isdir(text) else sorted(glob.glob(text, recursive=True))
        for match in matches:
            if holds_run(match):
                found[Path(match)] = None
            elif os.path.isdir(match) and not glob.has_magic(text):
                found.update(dict.fromkeys(_below(Path(match))))
        if not matches or (len(found) == before and not glob.has_magic(text)):
            missing.append(text)
    runs: list[Run] = []
    unreadable: list[str] = []
    for path in found:
        _open_into(path, runs, unreadable)
    if not runs and not unreadable:
        raise _unmatched(patterns)
    return Runs(runs, [*unreadable, *(str(_unmatched([text])) for text in missing)])


def _unmatched(patterns: Sequence[str]) -> RunUnreadable:
    return RunUnreadable(
        f"No rnndiag run matches {redact_addresses(', '.join(patterns))}.",
        "A run is a directory with recordings/r*.tar; '**' in a pattern goes into subdirectories.",
    )


def _open_into(path: Path, runs: list[Run], unreadable: list[str]) -> None:
    try:
        runs.append(open_run(path))
    except RunUnreadable as fault:
        unreadable.append(str(fault))


def _below(folder: Path) -> list[Path]:
    """Runs directly in a folder."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and holds_run(path))
