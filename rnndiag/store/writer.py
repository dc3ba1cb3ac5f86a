"""Writes a run: one file per rank and start, one write and one fsync per recording."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rnndiag.errors import RnndiagError, RunNotWritten
from rnndiag.store import limits, problem, stored, tar
from rnndiag.store.ending import FINISHED, reason_of
from rnndiag.store.problem import Problem
from rnndiag.store.process import host_name, process_started
from rnndiag.store.quantities import FIXED_COORDINATES, QUANTITIES
from rnndiag.store.recording import Recording
from rnndiag.store.redact import redact
from rnndiag.store.segment import SegmentName
from rnndiag.store.size_budget import SizeBudget
from rnndiag.store.source import refuse_to_leave, sync_directory, write_at
from rnndiag.store.starts import free_directory, next_start, refuse_used
from rnndiag.store.text import plain, to_json
from rnndiag.store.whole_files import NEW_FILE, write_whole

log = logging.getLogger("rnndiag.run")
FAILURES_THAT_STOP = 3
_PROVENANCE_BYTES = limits.JSON_BYTES // 2
_DROPPED_FOR = (OSError, ValueError, TypeError, ArithmeticError, MemoryError, RnndiagError)

__all__ = ["RunWriter", "free_directory"]


@dataclass
class Dropped:
    """Recordings that were due and could not be stored, kept so that a reader knows of the gap."""

    count: int = 0
    first_step: int | None = None
    last_step: int | None = None
    why: str = ""

    def add(self, step: int, why: str) -> None:
        """Count one dropped recording; a step that is first asked for and then refused counts once."""
        if step == self.last_step:
            return
        self.count += 1
        self.first_step = step if self.first_step is None else self.first_step
        self.last_step = step
        self.why = self.why or why


class RunWriter:
    """Appends recordings to a run directory; also a context manager.

    A failed append is reported once and its recording dropped; the file stays intact. After three failures in a row the
    writer stops. It never raises for a recording (unless `strict=True`), only for an unusable directory and in a forked
    process.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        provenance: Mapping[str, Any] | None = None,
        rank: int = 0,
        world_size: int = 1,
        resumed_from_step: int | None = None,
        *,
        start: int | None = None,
        max_bytes: float = limits.BUDGET_BYTES,
        durable: bool = True,
        strict: bool = False,
    ) -> None:
        self.path = Path(os.path.abspath(path))
        self.rank, self.world_size = int(rank), int(world_size)
        self.resumed_from_step = resumed_from_step
        self.problems: list[Problem] = []
        self.count = 0
        self.last_step: int | None = None
        self._last_phase = ""
        self._told_again = False
        self.durable, self.strict = durable, strict
        self._owner = os.getpid()
        self._failures = 0
        self._stopped = False
        self._closed = False
        self._descriptor = -1
        self._full = False
        self._dropped = Dropped()
        folder = self.path / "recordings"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            refuse_to_leave(self.path, folder)
            if resumed_from_step is None:
                refuse_used(self.path, self.rank)
            self.start = (
                next_start(self.path, self.rank, resumed_from_step) if start is None else start
            )
            self.budget = SizeBudget(max_bytes / self.world_size, used=_bytes_of(folder, self.rank))
            self._token = secrets.token_hex(4)
            self._open_json = self._described(_prepared(provenance or {}))
            self._open_segment(0)
            if self.rank == 0:
                self._write_copy({})
        except OSError as fault:
            self._let_go()
            raise RunNotWritten(
                f"The run directory {self.path} cannot be written ({fault.strerror or fault}).",
                "Choose another dirpath, or make room and give yourself the right to write there.",
            ) from fault

    def _described(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "format": "rnndiag",
            "version": list(limits.FORMAT),
            "run_id": self._token,
            "rank": self.rank,
            "world_size": self.world_size,
            "start": self.start,
            "segment": 0,
            "started": time.time(),
            "resumed_from_step": self.resumed_from_step,
            "process": {
                "host": host_name(),
                "pid": os.getpid(),
                "started": process_started(os.getpid()),
            },
            "registry": {q.name: q.as_json() for q in QUANTITIES.values()},
            "coordinates": FIXED_COORDINATES,
            "provenance": provenance,
        }

    @property
    def stopped(self) -> bool:
        """Whether recording has ended: closed, failed three times, or the budget is used up."""
        return self._stopped or self._closed or self._full

    def wants(self, step: int) -> bool:
        """Whether a recording of this step would be stored: it is due under the stretched interval, and the writer has
        not stopped.

        Call once for each recording that is due: after the writer has stopped, each call counts a dropped recording.
        """
        wanted = self.budget.wants(step)
        if wanted and self.stopped and not self._closed:
            self.drop(step, self._why_stopped)
        return wanted and not self.stopped

    def drop(self, step: int, why: str) -> None:
        """Count a recording that was due at `step` and was not made; the next one is due an interval later."""
        self._dropped.add(step, why)
        self.budget.last_step = step

    @property
    def _why_stopped(self) -> str:
        return "the size limit was reached" if self._full else "recording had stopped"

    def append(self, recording: Recording) -> bool:
        """Store a recording. Returns True once it is on disk, False if it was dropped (see `problems` and the log)."""
        if os.getpid() != self._owner:
            raise RunNotWritten(
                f"A forked process (pid {os.getpid()}) tried to write the run of process {self._owner}.",
                "Record in the process that opened the run, or open a run of its own there.",
            )
        if self._closed:
            raise RunNotWritten(f"The run {self.path} is closed.", "Open a new RunWriter to go on.")
        # The end of a fit and accidents are stored whatever the interval is.
        told_apart = recording.phase == "end" or "black_box" in recording.notes
        if not (told_apart or self.budget.wants(recording.step)):
            return False
        if self.stopped:
            self.drop(recording.step, self._why_stopped)
            return False
        try:
            return self._store(self.budget.thinned(recording))
        except _DROPPED_FOR as fault:
            self._failed(recording.step, fault)
            return False

    def _store(self, recording: Recording) -> bool:
        phase = stored.encoded_phase(recording.phase)
        if not 0 < len(phase) <= limits.PHASE_BYTES:
            raise ValueError(f"the phase {recording.phase!r} is empty or too long")
        content = stored.pack(recording)
        data = tar.member(tar.recording_name(recording.step, phase), content, recording.time)
        if not self.budget.fits(len(data)):
            self._full = True
            self.drop(recording.step, self._why_stopped)
            log.warning(
                "rnndiag: the size limit of %.0f MiB is used up at step %d: recording stops, training goes on. "
                "Give the callback a larger max_bytes, or a larger every_n_steps.",
                self.budget.max_bytes / limits.MIB,
                recording.step,
            )
            return False
        self._reopen_if_removed()
        if self._offset > tar.BLOCK and self._is_full(len(data)):
            self._open_segment(self._number + 1)
        self._append(data)
        self._failures = 0
        self._tell_if_again(recording)
        self.count += 1
        self._in_segment += 1
        self.last_step = recording.step
        for sentence in self.budget.stored(recording, len(data)):
            log.warning("rnndiag: %s (%s)", sentence, self.path)
        return True

    def _tell_if_again(self, recording: Recording) -> None:
        """Warn at the first repeated (step, phase): readers see only the last recording of each."""
        again = (recording.step, recording.phase) == (self.last_step, self._last_phase)
        self._last_phase = recording.phase
        if again and not self._told_again:
            self._told_again = True
            log.warning(
                "rnndiag: step %d (%s) was recorded twice in %s: the later recording replaces the earlier one. "
                "Give every recording a step of its own.",
                recording.step,
                recording.phase,
                self.path,
            )

    def _is_full(self, more: int) -> bool:
        too_long = self._offset + more > limits.SEGMENT_ROLLS_AT and self._in_segment > 0
        return too_long or self._in_segment >= limits.SEGMENT_RECORDINGS

    def _open_segment(self, number: int) -> None:
        """Create the next file with everything needed to read it alone, then close the previous one."""
        name = SegmentName(self.rank, self.start, self._token, number).file
        path = self.path / "recordings" / name
        first = tar.json_member(
            tar.OPEN, to_json({**self._open_json, "segment": number}), time.time()
        )
        before = self._descriptor
        descriptor = os.open(path, NEW_FILE, 0o644)
        try:
            _write(descriptor, first, 0, durable=False)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        self._sync_new(descriptor, path.parent)
        if before >= 0:
            os.close(before)
        self._descriptor, self._file, self._number = descriptor, f"recordings/{name}", number
        self._offset, self._in_segment = len(first), 0
        self.budget.used += len(first)

    def _sync_new(self, descriptor: int, folder: Path) -> None:
        """fsync a new file and its directory entry; file systems that refuse are ignored."""
        if not self.durable:
            return
        try:
            os.fsync(descriptor)
            sync_directory(folder)
        except OSError as fault:
            self.durable = False
            log.warning(
                "rnndiag: %s cannot be synchronised to disk (%s): a crash of the machine may lose recordings.",
                self.path,
                fault.strerror or fault,
            )

    def _reopen_if_removed(self) -> None:
        """Continue in a new file if the run's files were removed, since writes to the open one would be lost."""
        # Without a link the open file has been deleted.
        if os.fstat(self._descriptor).st_nlink:
            return
        lost = self.count
        (self.path / "recordings").mkdir(parents=True, exist_ok=True)
        self._open_segment(self._number + 1)
        log.warning(
            "rnndiag: the files of the run %s were removed while it was written: %d recordings are lost, "
            "and recording goes on there.",
            self.path,
            lost,
        )

    def _append(self, data: bytes) -> None:
        try:
            _write(self._descriptor, data, self._offset, self.durable)
        except OSError:
            # Remove what was written of the member, so that the file ends with a whole one.
            os.ftruncate(self._descriptor, self._offset)
            raise
        self._offset += len(data)

    def _failed(self, step: int, fault: Exception) -> None:
        why = getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
        found = problem.not_stored(self._file, step, why)
        if not self.problems:
            log.warning("rnndiag: %s", found)
        self.problems.append(found)
        self.drop(step, f"it could not be written: {why}")
        self._failures += 1
        if self._failures >= FAILURES_THAT_STOP:
            self._stopped = True
            self.problems.append(problem.stopped(self._file, self._failures))
            log.warning("rnndiag: %s", self.problems[-1])
        if self.strict:
            raise RunNotWritten(
                f"Step {step} could not be written to {self.path} ({why}).",
                "Make room or mend the recording; without strict=True training would go on.",
            ) from fault

    def close(
        self,
        reason: str = FINISHED,
        final_step: int | None = None,
        gave_up: Mapping[str, str] | None = None,
        cut_short: bool = False,
    ) -> None:
        """Store how the run ended and how many recordings were stored and dropped. No effect in a forked process.

        Args:
            reason: What ended the training.
            final_step: The training step at which it ended.
            gave_up: Part of the recorder that was left out after repeated faults -> its last fault.
            cut_short: Whether training ended before its last step: by an exception, a signal or another fit.
        """
        if self._closed or os.getpid() != self._owner:
            return
        self._closed = True
        end = {
            "count": self.count,
            "last_step": self.last_step,
            "reason": reason,
            "cut_short": cut_short,
            "time": time.time(),
            "final_step": final_step,
            "dropped": asdict(self._dropped),
            "gave_up": dict(gave_up or {}),
        }
        try:
            self._append(tar.json_member(tar.CLOSE, to_json(end), time.time()) + tar.END)
            if self.rank == 0:
                self._write_copy({"end": end})
        except OSError as fault:
            why = fault.strerror or str(fault)
            log.warning(
                "rnndiag: the run %s could not be closed (%s); what it holds is whole.",
                self.path,
                why,
            )
        finally:
            self._let_go()

    def _write_copy(self, more: Mapping[str, Any]) -> None:
        """Write run.json for people and scripts; rnndiag does not read it back."""
        facts = {
            key: value
            for key, value in self._open_json.items()
            if key not in ("registry", "coordinates")
        }
        text = to_json({**facts, **more}, indent=1) + b"\n"
        write_whole(self.path / "run.json", text, durable=False)

    def _let_go(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        reason = FINISHED if fault is None else reason_of(fault)
        self.close(reason, cut_short=fault is not None)

    def __del__(self) -> None:
        if getattr(self, "_owner", None) == os.getpid():
            self._let_go()


def _write(descriptor: int, data: bytes, offset: int, durable: bool) -> None:
    view = memoryview(data)
    while view:
        written = write_at(descriptor, view, offset)
        view, offset = view[written:], offset + written
    if durable:
        os.fsync(descriptor)


def _bytes_of(folder: Path, rank: int) -> int:
    parsed = ((entry, SegmentName.parse(entry.name)) for entry in os.scandir(folder))
    return sum(entry.stat().st_size for entry, name in parsed if name and name.rank == rank)


def _prepared(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance as stored: plain JSON without secrets, too large entries replaced by a note of their size."""
    told: dict[str, Any] = redact(plain(provenance))
    sizes = {key: len(to_json(entry)) for key, entry in told.items()}
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if sum(sizes.values()) <= _PROVENANCE_BYTES:
            break
        told[key] = f"[left out: {sizes[key]} bytes are too many]"
        sizes[key] = len(told[key])
    return told
