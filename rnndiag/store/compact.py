"""Shrinks a stored run: drops the least useful data until it fits, and copies the rest bit for bit."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rnndiag.errors import BadArgument, RunNotWritten, RunUnreadable
from rnndiag.store import npz, stored, tar
from rnndiag.store.limits import SEGMENT_RECORDINGS, SEGMENT_ROLLS_AT
from rnndiag.store.reader import StoredRun
from rnndiag.store.scan import FOLDER, SET_ASIDE
from rnndiag.store.segment import Place, Segment, SegmentName
from rnndiag.store.size_budget import MATRIX_EVERY, is_matrix
from rnndiag.store.source import sync_directory
from rnndiag.store.text import from_json, to_json

NEW = "recordings.compacting"
_DROPPED = f"rnndiag compact: kept with every {MATRIX_EVERY}th recording"

_DAMAGED = "damaged when `rnndiag compact` rewrote the recording"


@dataclass(frozen=True)
class Compaction:
    """What compacting did: bytes before and after, and how many recordings (of all ranks) were kept or dropped."""

    before: int
    after: int
    recordings: int
    kept: int
    superseded: int
    damaged: int
    without_matrices: int


@dataclass(frozen=True)
class KeptRecording:
    """A recording that stays, its entries, and the names of the entries to drop."""

    place: Place
    entries: dict[str, npz.Entry]
    dropped: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """Approximate size in bytes after dropping entries, directory included."""
        gone = sum(self.entries[name][1] + 2 * len(name) + 76 for name in self.dropped)
        return tar.BLOCK + tar.padded(self.place.size - gone)


def compact(path: str | os.PathLike[str], max_bytes: int, dry_run: bool = False) -> Compaction:
    """Rewrite a run so that it takes at most `max_bytes`; a kill at any moment leaves it readable.

    Only regular files in directories of the run itself are moved or deleted: where one of its folders is a link,
    nothing is done.

    Args:
        path: The run directory.
        max_bytes: The size to reach.
        dry_run: Only say what would be done.

    Raises:
        RunUnreadable: The run is being written, holds something that would be lost, or has a link for a folder.
        RunNotWritten: The disk is full, or another process compacts the run.
    """
    root = Path(path)
    _refuse_links(root)
    if dry_run:
        return _compacted(root, max_bytes, dry_run)
    try:
        with _alone(root):
            _finish_interrupted(root)
            return _compacted(root, max_bytes, dry_run)
    except OSError as fault:
        raise RunNotWritten(
            f"{root} could not be compacted ({fault.strerror or fault}); it can still be read.",
            "Make room, or give yourself the right to write there.",
        ) from fault


def _compacted(root: Path, max_bytes: int, dry_run: bool) -> Compaction:
    run = StoredRun(root)
    if run.status.word == "running":
        raise RunUnreadable(f"{root} is being written.", "Compact it when the training has ended.")
    _refuse_to_lose(root, run)
    before, segments = _files(root), run.scan.segments
    groups, damaged = _readable(run)
    overhead = sum(_overhead(segment) for segment in segments)
    kept = _fitting(groups, max_bytes - overhead, root)
    done = Compaction(
        run.size,
        overhead + sum(one.size for one in kept),
        sum(len(group) for group in run.groups),
        len(kept),
        run.superseded,
        damaged,
        sum(bool(one.dropped) for one in kept),
    )
    if dry_run:
        return done
    try:
        _write(root, segments, kept)
    except OSError:
        _remove(root / NEW)
        raise
    if _files(root) != before:
        _remove(root / NEW)
        raise RunUnreadable(
            f"{root} was written to while it was compacted, and is left as it is.",
            "Compact it when the training has ended.",
        )
    _swap(root)
    return replace(done, after=StoredRun(root).size)


def _refuse_to_lose(root: Path, run: StoredRun) -> None:
    """Raise RunUnreadable if a segment cannot be read by this version: rewriting the run would delete it."""
    unread = [segment.label for segment in run.scan.segments if not segment.readable]
    read = {segment.name.file for segment in run.scan.segments}
    unread += [f"{run.scan.folder}/{name}" for name in _files(root) if name not in read]
    if unread:
        raise RunUnreadable(
            f"{unread[0]} cannot be read, and compacting would drop it.",
            "Move it away first, or mend it.",
        )


def _refuse_links(root: Path) -> None:
    """Raise RunUnreadable if a folder is a link: the recordings behind it belong to another run."""
    for name in (FOLDER, SET_ASIDE, NEW):
        if (root / name).is_symlink():
            raise RunUnreadable(
                f"{root / name} is a link, and compacting would move the recordings out of the folder behind it.",
                "Put that folder in the place of the link first, or remove the link.",
            )


def _files(root: Path) -> dict[str, int]:
    """Sizes in bytes of all segment files by name, readable or not."""
    folder = root / FOLDER
    names = filter(SegmentName.parse, os.listdir(folder)) if folder.is_dir() else ()
    return {name: os.lstat(folder / name).st_size for name in names}


def _readable(run: StoredRun) -> tuple[list[list[KeptRecording]], int]:
    groups: list[list[KeptRecording]] = []
    damaged = 0
    for group in run.groups:
        entries = [(place, run.collector.directory(place)) for place in group]
        whole = [KeptRecording(place, found) for place, found in entries if found]
        damaged += len(group) - len(whole)
        if whole:
            groups.append(whole)
    return groups, damaged


def _overhead(segment: Segment) -> int:
    first = segment.places[0].start - tar.BLOCK if segment.places else 1 << 15
    return first + 4 * tar.BLOCK


def _fitting(groups: list[list[KeptRecording]], room: int, root: Path) -> list[KeptRecording]:
    """The recordings that fit into `room` bytes.

    Matrices are first thinned to every 10th recording; then only every 2nd, 4th, 8th, ... recording is kept. The first
    and the last recording always stay.
    """
    plan = groups
    stride = 0
    while _size(plan) > room:
        if stride == 0:
            groups = [_thinned(group, at, len(groups)) for at, group in enumerate(groups)]
            plan, stride = groups, 1
            continue
        if stride >= len(groups):
            raise BadArgument(
                f"{root} cannot be made so small: its first and last recordings alone take "
                f"{_size(plan)} bytes, and there is room for {max(room, 0)}.",
                "Allow more bytes.",
            )
        stride *= 2
        last = len(groups) - 1
        plan = [group for at, group in enumerate(groups) if at % stride == 0 or at == last]
    return [one for group in plan for one in group]


def _size(plan: Iterable[Iterable[KeptRecording]]) -> int:
    return sum(one.size for group in plan for one in group)


def _thinned(group: list[KeptRecording], at: int, count: int) -> list[KeptRecording]:
    if at % MATRIX_EVERY == 0 or at == count - 1:
        return group
    return [replace(one, dropped=frozenset(filter(_is_matrix, one.entries))) for one in group]


def _is_matrix(name: str) -> bool:
    key = stored.entry_key(name)
    return key is not None and is_matrix(key[0], ())


def _content(one: KeptRecording) -> bytes:
    """The npz file of a recording: unchanged, or without dropped and damaged arrays, with a note that says so.

    A recording whose facts are unreadable has no place for the note and stays unchanged.
    """
    segment = one.place.segment
    facts = _undamaged(one, stored.FACTS) if one.dropped else None
    if facts is None:
        return segment.file.read(one.place.start, one.place.size)
    rest = [name for name in one.entries if name != stored.FACTS and name not in one.dropped]
    found = {name: _undamaged(one, name) for name in rest}
    whole = {name: data for name, data in found.items() if data is not None}
    reasons = dict.fromkeys(one.dropped, _DROPPED)
    reasons |= {name: _DAMAGED for name in rest if name not in whole}
    whole = {stored.FACTS: _noted(facts, reasons), **whole}
    return npz.pack((name, (data,)) for name, data in whole.items())


def _undamaged(one: KeptRecording, name: str) -> bytes | None:
    try:
        return one.place.segment.content(one.place, one.entries[name])
    except (npz.Damaged, KeyError):
        return None


def _noted(text: bytes, gone: Mapping[str, str]) -> bytes:
    facts = from_json(text)
    notes: dict[str, Any] = dict(facts.get("notes") or {})
    reasons = dict(notes.get("not_measured") or {})
    for name, reason in gone.items():
        key = stored.entry_key(name)
        if key is not None:
            reasons[key[0]] = reason
    return to_json({**facts, "notes": {**notes, "not_measured": reasons}})


def _write(root: Path, segments: list[Segment], kept: list[KeptRecording]) -> None:
    """Write the segments with the kept recordings into a new folder beside the old one."""
    folder = root / NEW
    folder.mkdir()
    writers: dict[tuple[int, int, str], list[Segment]] = {}
    for segment in sorted(segments, key=lambda segment: segment.name):
        if segment.facts:  # a writer killed before its first byte has none, and nothing to keep
            writers.setdefault(segment.name[:3], []).append(segment)
    for writer, own in writers.items():
        places = [one for one in kept if one.place.segment in own]
        places.sort(key=lambda one: (one.place.segment.name.number, one.place.start))
        _write_writer(folder, SegmentName(*writer, 0), own, places)
    sync_directory(folder)


def _write_writer(
    folder: Path, name: SegmentName, own: list[Segment], places: list[KeptRecording]
) -> None:
    facts = {**own[0].facts, "compacted": {"time": time.time(), "recordings": len(places)}}
    end = own[-1].end
    todo = list(places)
    while True:
        with open(folder / name.file, "xb") as file:
            file.write(
                tar.json_member(tar.OPEN, to_json({**facts, "segment": name.number}), time.time())
            )
            count = 0
            while (
                todo
                and count < SEGMENT_RECORDINGS
                and (not count or file.tell() + todo[0].size < SEGMENT_ROLLS_AT)
            ):
                one = todo.pop(0)
                key = tar.recording_name(one.place.step, stored.encoded_phase(one.place.phase))
                file.write(tar.member(key, _content(one), time.time()))
                count += 1
            if not todo and end is not None:
                file.write(
                    tar.json_member(tar.CLOSE, to_json({**end, "count": len(places)}), time.time())
                    + tar.END
                )
            file.flush()
            os.fsync(file.fileno())
        os.utime(folder / name.file, (own[-1].file.modified(),) * 2)  # `last recording 3 h ago`
        if not todo:
            return
        # The segment is full: continue in the next one.
        name = name._replace(number=name.number + 1)


def _swap(root: Path) -> None:
    """Put the new folder in place by two renames; `open_run` can read the state between them."""
    os.rename(root / FOLDER, root / SET_ASIDE)
    os.rename(root / NEW, root / FOLDER)
    sync_directory(root)
    _remove(root / SET_ASIDE)


def _finish_interrupted(root: Path) -> None:
    """Undo or finish a `compact` that was killed."""
    if (root / SET_ASIDE).is_dir():
        if (root / FOLDER).is_dir():
            _remove(root / SET_ASIDE)
        else:
            os.rename(root / SET_ASIDE, root / FOLDER)
    if (root / NEW).is_dir():
        _remove(root / NEW)


def _remove(folder: Path) -> None:
    """Delete the segments in a folder, then the folder; other files are kept in a folder of their own."""
    for name in os.listdir(folder):
        if SegmentName.parse(name):
            (folder / name).unlink()
    if os.listdir(folder):
        # Not ours to delete, but the name must become free.
        os.rename(folder, folder.with_name(f"{folder.name}.{secrets.token_hex(4)}"))
    else:
        folder.rmdir()


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Lock the run directory while it is rewritten; RunNotWritten where another process has the lock.

    The system frees the lock with the process, so a kill leaves nothing behind. Where there are no such locks (Windows,
    some file systems), no process is kept out.
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
