"""Reads one segment: an index of its recordings, extended as the file grows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from rnndiag.store import limits, npz, problem, stored, tar
from rnndiag.store.problem import Problem
from rnndiag.store.recording import Recording
from rnndiag.store.source import File
from rnndiag.store.text import from_json

_NAME = re.compile(r"r([0-9]{5,9})-s([0-9]{3,9})-([0-9a-f]{8})-([0-9]{4,9})\.tar")
_WINDOW = 1 << 20


class SegmentName(NamedTuple):
    """Who wrote a segment: rank, start, the writer's random token, and the number of the segment."""

    rank: int
    start: int
    token: str
    number: int

    @property
    def file(self) -> str:
        """`r00000-s000-3c3c2f5d-0000.tar`."""
        return f"r{self.rank:05d}-s{self.start:03d}-{self.token}-{self.number:04d}.tar"

    @classmethod
    def parse(cls, file: str) -> SegmentName | None:
        """Parse a file name; None if it is not the name of a segment."""
        found = _NAME.fullmatch(file)
        return cls(int(found[1]), int(found[2]), found[3], int(found[4])) if found else None


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Location of one recording: its step, phase, and the bytes of its npz file."""

    segment: Segment
    step: int
    phase: str
    start: int
    size: int


class Segment:
    """The recordings of one file. `advance()` continues where it stopped."""

    def __init__(self, name: SegmentName, file: File, salvage: bool = False) -> None:
        self.name, self.file = name, file
        self.label = f"recordings/{name.file}"
        self.places: list[Place] = []
        self.facts: dict[str, Any] = {}
        self.end: dict[str, Any] | None = None
        self.problems: list[Problem] = []
        self.missing = 0
        self.missing_step: int | None = None
        self.readable = True
        self._salvage = salvage
        self._offset = 0
        self._searched = 0
        self._members = 0

    @cached_property
    def decoder(self) -> stored.Decoder:
        """Turns arrays into measurements by the registry stored in this segment."""
        return stored.Decoder(self.facts.get("registry", {}), self.facts.get("coordinates", {}))

    def advance(self) -> int:
        """Index what was appended since the last call; returns the number of new recordings."""
        size, before = self.file.size(), len(self.places)
        if size > limits.SEGMENT_BYTES:
            if self.readable:
                self.problems.append(problem.refused(self.label, f"a file of {size} bytes"))
            self.readable, self.missing = False, 0
            return 0
        self.missing = 0
        if self._offset == 0 and size and not self.problems:
            self._read_open(size)
        while self.readable and self._offset < size and self._members < limits.SEGMENT_MEMBERS:
            if not self._step(size):
                break
            if self._members == limits.SEGMENT_MEMBERS and self._offset < size:
                many = f"more than {limits.SEGMENT_MEMBERS} members in one file"
                self.problems.append(problem.refused(self.label, many))
        return len(self.places) - before

    def _step(self, size: int) -> bool:
        """Index the member at the current offset; False if it is incomplete, or the archive ends."""
        block = self.file.read(self._offset, tar.BLOCK)
        found = tar.header(block, self._offset)
        if found is None:
            return self._pass_damage(block, size)
        if found.size > limits.RECORDING_BYTES:
            self.problems.append(problem.refused(self.label, f"a member of {found.size} bytes"))
            return self._search(size)
        if found.start + found.size > size:
            self.missing = found.start + found.size - size
            key = tar.recording_key(found.name)
            self.missing_step = key[0] if key else None
            return False
        self._take(found)
        self._offset = found.end
        self._members += 1
        return True

    def _json(self, found: tar.Member) -> dict[str, Any]:
        data = self.file.read(found.start, min(found.size, limits.JSON_BYTES + 1))
        if len(data) <= limits.JSON_BYTES and tar.guard_of(data) != found.guard:
            raise ValueError("it fails its checksum")
        return from_json(data)

    def _take(self, found: tar.Member) -> None:
        key = tar.recording_key(found.name)
        if key is not None:
            phase = stored.decoded_phase(key[1])
            self.places.append(Place(self, key[0], phase, found.start, found.size))
        elif found.name == tar.CLOSE:
            try:
                self.end = self._json(found)
            except ValueError as fault:
                self.problems.append(
                    problem.recording_damaged(self.label, 0, "end.json", str(fault))
                )

    def _read_open(self, size: int) -> None:
        """Read the first member, which describes the segment; without it nothing else is read unless salvaging."""
        block = self.file.read(0, tar.BLOCK)
        found = tar.header(block, 0)
        is_open = found is not None and found.name == tar.OPEN
        ends = found.start + found.size if found is not None and is_open else tar.BLOCK
        begun = is_open or tar.OPEN.encode().startswith(block[: len(tar.OPEN)])
        self.readable = ends <= size or not begun
        if not self.readable:
            self.missing = ends - size
            return
        why = "it is not the first member"
        if found is not None and is_open:
            try:
                self.facts = _of_their_kinds(self._json(found))
                why = _fault_of_open(self.facts)
            except ValueError as fault:
                why = str(fault)
            self._offset = min(found.end, size)
        if why:
            self.facts = {}
            self.readable = self._salvage
            say = problem.salvaged if self._salvage else problem.open_unreadable
            self.problems.append(say(self.label, why))
        elif self.facts["version"][0] > limits.FORMAT[0]:
            self.readable = False
            version, known = (
                ".".join(map(str, pair)) for pair in (self.facts["version"], limits.FORMAT)
            )
            self.problems.append(problem.newer_format(self.label, version, known))

    def _pass_damage(self, block: bytes, size: int) -> bool:
        """Skip to the next intact header and report the bytes skipped. Zeros up to the end mark the end of the
        archive."""
        if not any(block) and self._only_zeros(size):
            return False
        if size - self._offset < tar.BLOCK:
            self.missing = tar.BLOCK - (size - self._offset)
            self.missing_step = None
            return False
        return self._search(size)

    def _only_zeros(self, size: int) -> bool:
        rest = size - self._offset
        return rest <= _WINDOW and not any(self.file.read(self._offset, rest))

    def _search(self, size: int) -> bool:
        begin, at = self._offset, self._offset + tar.BLOCK
        while at < size and self._searched < limits.SEARCH_BYTES:
            # Windows overlap by a block, so that a header across their border is found.
            window = self.file.read(at, _WINDOW + tar.BLOCK)
            self._searched += _WINDOW
            mark = tar.next_mark(window, at)
            if mark is None or mark >= at + _WINDOW:
                at += _WINDOW
                continue
            found = tar.header(self.file.read(mark, tar.BLOCK), mark)
            key = tar.recording_key(found.name) if found else None
            if found and (key or found.name == tar.CLOSE) and found.start + found.size <= size:
                self._skip(begin, mark, key[0] if key else None)
                return True
            at = mark + tar.BLOCK
        self._skip(begin, size, None)
        return False

    def _skip(self, begin: int, end: int, step: int | None) -> None:
        self.problems.append(problem.skipped_bytes(self.label, end - begin, step))
        # Members start at block boundaries.
        self._offset = end - end % tar.BLOCK

    def directory(self, place: Place) -> dict[str, npz.Entry]:
        """All entries of a recording; npz.Damaged where it is unreadable."""
        # The last 4096 bytes hold most directories, so that one read is enough.
        tail_at = max(0, place.size - 4096)
        data = self.file.read(place.start + tail_at, place.size - tail_at)
        tail = data[-npz.TAIL_BYTES :]
        start, end = npz.directory_span(tail, place.size)
        if start >= tail_at:
            listing = data[start - tail_at : end - tail_at]
        else:
            listing = self.file.read(place.start + start, end - start)
        return npz.directory(listing, tail, start)

    def content(self, place: Place, entry: npz.Entry) -> bytes:
        """The content of one entry, after its checksum was verified."""
        data = self.file.read(place.start + entry[0], entry[1])
        npz.content(data, entry)
        return data

    def recording(self, place: Place, warn: stored.Warn) -> Recording:
        """The whole recording; npz.Damaged where it is unreadable."""
        data = self.file.read(place.start, place.size)
        if len(data) != place.size:
            raise npz.Damaged("it was cut off after it was indexed")
        recording = stored.unpack(data, self.decoder, self.name.rank, warn)
        if (recording.step, recording.phase) != (place.step, place.phase):
            raise npz.Damaged(f"it calls itself step {recording.step} ({recording.phase})")
        return recording

    def __iter__(self) -> Iterator[Place]:
        return iter(self.places)


def _fault_of_open(facts: dict[str, Any]) -> str:
    version = facts.get("version")
    if facts.get("format") != "rnndiag" or not isinstance(version, list) or len(version) != 2:
        return "it does not name a format"
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in version)
    return "" if whole else "its version is not two numbers"


_KINDS: dict[str, type] = {
    "registry": dict,
    "coordinates": dict,
    "provenance": dict,
    "process": dict,
    "started": float,
    "resumed_from_step": int,
}


def _of_their_kinds(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts without entries of unexpected types, so that readers need not check types."""
    return {
        key: entry for key, entry in facts.items() if isinstance(entry, _KINDS.get(key, object))
    }
