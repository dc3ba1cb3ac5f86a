"""Finds the segments of a run directory and follows files that still grow."""

from __future__ import annotations

import os
from typing import Any

from rnndiag.errors import RunUnreadable
from rnndiag.store import problem
from rnndiag.store.problem import Problem
from rnndiag.store.segment import Segment, SegmentName
from rnndiag.store.source import NotRegular, directory

FOLDER, SET_ASIDE = "recordings", "recordings.before-compact"


class Scan:
    """All segments of a run, sorted by name; `advance()` reads new files and new bytes."""

    def __init__(self, path: str | os.PathLike[str], salvage: bool) -> None:
        self._directory = directory(path)
        self._salvage = salvage
        self._own: list[Problem] = []
        self._known: set[str] = set()
        self.segments: list[Segment] = []
        self.folder = FOLDER
        try:
            self._start()
        except (OSError, ValueError) as fault:
            why = getattr(fault, "strerror", None) or str(fault)
            raise RunUnreadable(
                f"{_short(self._directory.name)} cannot be read ({why}).",
                "Name the directory that the link leads to, if it is yours."
                if isinstance(fault, NotRegular)
                else "Give a directory that you have the right to read.",
            ) from fault

    def _start(self) -> None:
        names = self._names()
        if not names and self._has_segments(SET_ASIDE):
            self.folder = SET_ASIDE
            self._own.append(problem.interrupted_compact(SET_ASIDE))
        elif not names and not self._directory.exists():
            raise RunUnreadable(
                f"There is no directory {self._directory.name}.", self._advice_without()
            )
        elif not names:
            raise RunUnreadable(
                f"No rnndiag run in {self._directory.name} (expected {FOLDER}/r*.tar).",
                self._advice(),
            )
        self.advance()
        self._refuse_unreadable()

    def _names(self) -> list[str]:
        found = self._directory.names(FOLDER)
        return [name for name in found if name.startswith("r") and name.endswith(".tar")]

    def _has_segments(self, folder: str) -> bool:
        try:
            return any(SegmentName.parse(name) for name in self._directory.names(folder))
        except NotRegular:
            return False

    def _advice_without(self) -> str:
        if os.path.isfile(self._directory.name):
            return "It is a file: give the run's directory, which holds the folder `recordings`."
        return "Give the directory that the callback named in its log."

    def _advice(self) -> str:
        inside = [n for n in self._directory.names("") if self._has_segments(f"{n}/{FOLDER}")][:3]
        if inside:
            return f"Runs are in it: {', '.join(inside)}."
        if any(SegmentName.parse(name) for name in self._directory.names("")):
            return "This is the folder `recordings` of a run: give the folder above it."
        return "Give the directory that the callback named in its log, or open_runs() a pattern."

    def advance(self) -> None:
        """Read new files and new bytes."""
        for name in self._directory.names(self.folder):
            if name in self._known or not (name.startswith("r") and name.endswith(".tar")):
                continue
            self._known.add(name)
            self._add(name)
        for segment in self.segments:
            self._advance(segment)

    def _advance(self, segment: Segment) -> None:
        try:
            segment.advance()
        except OSError as fault:
            segment.readable = False
            self._own.append(problem.unreadable(segment.label, fault.strerror or str(fault)))

    def _add(self, name: str) -> None:
        label = f"{self.folder}/{name}"
        parsed = SegmentName.parse(name)
        try:
            file = self._directory.open(label)
        except NotRegular:
            self._own.append(problem.not_regular(label))
            return
        except OSError as fault:
            self._own.append(problem.unreadable(label, fault.strerror or str(fault)))
            return
        if parsed is None:
            file.close()
            self._own.append(problem.unreadable(label, "its name is not one that rnndiag gives"))
            return
        self.segments.append(Segment(parsed, file, self._salvage))

    def _refuse_unreadable(self) -> None:
        """Raise RunUnreadable if no segment is readable: the format is newer, or every open.json is damaged."""
        if any(segment.readable for segment in self.segments) or not self.problems:
            return
        if any(not segment.facts and segment.missing for segment in self.segments):
            return
        worst = self.problems[0]
        raise RunUnreadable(f"{self._directory.name} cannot be read: {worst}")

    @property
    def problems(self) -> list[Problem]:
        """Problems found while locating and indexing segments."""
        return [*self._own, *(found for segment in self.segments for found in segment.problems)]

    @property
    def newest_facts(self) -> dict[str, Any]:
        """open.json of the lowest rank of the newest start."""
        readable = [segment for segment in self.segments if segment.facts]
        newest = max(
            readable, key=lambda s: (s.name.start, -s.name.rank, s.name.number), default=None
        )
        return newest.facts if newest else {}

    @property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """open.json of the lowest rank of each start, in order, without the registry."""
        first: dict[int, Segment] = {}
        for segment in sorted(
            self.segments, key=lambda s: (s.name.start, s.name.rank, s.name.number)
        ):
            if segment.facts:
                first.setdefault(segment.name.start, segment)
        hidden = ("registry", "coordinates")
        return tuple(
            {key: value for key, value in s.facts.items() if key not in hidden}
            for s in first.values()
        )


def _short(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."
