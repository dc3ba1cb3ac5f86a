"""The problems that a run can have: one sentence each, with file and step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnndiag.store.safe_text import printable
from rnndiag.store.text import counted


@dataclass(frozen=True)
class Problem:
    """One fault of a run. `str()` is its sentence; `lost` says whether something recorded cannot be read."""

    kind: str
    text: str
    file: str = ""
    step: int | None = None
    lost: bool = True

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file else ""
        return printable(where + self.text)


def cut_off(file: str, missing: int, before: int, step: int | None) -> Problem:
    """The file ends within its last recording."""
    at = "" if step is None else f" (step {step})"
    text = f"the last recording{at} was cut off, {missing} bytes are missing, the {before} before it are used."
    return Problem("cut off", text, file, step)


def array_damaged(file: str, step: int, phase: str, quantity: str, layer: str, why: str) -> Problem:
    """One array of a recording is unreadable."""
    text = f"array {quantity} of layer {layer} at step {step} ({phase}) is damaged and left out: {why}."
    return Problem("array", text, file, step)


def recording_damaged(file: str, step: int, phase: str, why: str) -> Problem:
    """A whole recording is unreadable."""
    text = f"the recording of step {step} ({phase}) is damaged and left out: {why}."
    return Problem("recording", text, file, step)


def skipped_bytes(file: str, count: int, step: int | None) -> Problem:
    """A stretch of a segment is damaged."""
    on = "no recording follows" if step is None else f"reading went on at step {step}"
    return Problem("skipped", f"{count} damaged bytes skipped, {on}.", file, step)


def open_unreadable(file: str, why: str) -> Problem:
    """The first member of a segment does not say what the segment is."""
    text = (
        f"open.json is unreadable ({why}), so its recordings are left out; "
        "open the run with --salvage (salvage=True) to read them by this version's registry."
    )
    return Problem("open", text, file)


def salvaged(file: str, why: str) -> Problem:
    """The first member is unreadable and its recordings are read all the same."""
    text = (
        f"open.json is unreadable ({why}); salvaged by this version's registry, without provenance."
    )
    return Problem("salvaged", text, file)


def newer_format(file: str, version: str, known: str) -> Problem:
    """A segment of a later major version."""
    text = f"written in format {version}, this rnndiag reads up to {known}: upgrade rnndiag."
    return Problem("format", text, file)


def missing_at_close(file: str, missing: int, promised: int) -> Problem:
    """The segments hold fewer recordings than the writer counted when it closed."""
    return Problem(
        "missing", f"{missing} of {promised} recordings promised at close are missing.", file
    )


def missing_segments(file: str, first: Sequence[int], count: int) -> Problem:
    """`count` earlier files of a writer are missing; `first` are the lowest of their numbers."""
    which = ", ".join(map(str, first)) + (
        f" and {count - len(first)} more" if count > len(first) else ""
    )
    verb, their = ("is", "its") if count == 1 else ("are", "their")
    plural = "" if count == 1 else "s"
    text = f"segment{plural} {which} before it {verb} missing, with all {their} recordings."
    return Problem("missing", text, file)


def refused(file: str, why: str, step: int | None = None) -> Problem:
    """Data of a kind that the reader never accepts."""
    text = f"{why} is refused: compressed, pickled or oversized data is never read."
    return Problem("refused", text, file, step)


def not_regular(file: str) -> Problem:
    """A link, a pipe, a device or a folder where a segment should be."""
    return Problem("not regular", "not a regular file, skipped.", file)


def unreadable(file: str, why: str) -> Problem:
    """The operating system denies reading the file."""
    return Problem("unreadable", f"cannot be read ({why}), skipped.", file)


def two_writers(files: str, rank: int, start: int) -> Problem:
    """Two processes wrote under the same rank and start."""
    text = f"two writers used rank {rank} and start {start}; where they overlap, the later one is used."
    return Problem("two writers", text, files)


def re_recorded(count: int, step: int) -> Problem:
    """Recordings of an earlier start that a resumed start recorded again."""
    verb = "recording was" if count == 1 else "recordings were"
    text = f"{count} {verb} re-recorded or dropped after resuming at step {step}; the earlier ones are superseded."
    return Problem("resumed", text, step=step, lost=False)


def interrupted_compact(file: str) -> Problem:
    """`rnndiag compact` was stopped between its two renames."""
    text = "an interrupted `rnndiag compact` left the recordings here; run it again to finish."
    return Problem("compact", text, file, lost=False)


def not_stored(file: str, step: int, why: str) -> Problem:
    """The writer could not store a recording."""
    return Problem(
        "not stored", f"could not write step {step} ({why}), dropped, training goes on.", file, step
    )


def stopped(file: str, failures: int) -> Problem:
    """The writer stopped after repeated failures."""
    text = f"recording stopped after {failures} recordings in a row could not be written; training goes on."
    return Problem("stopped", text, file)


def dropped(file: str, count: int, first: int | None, last: int | None, why: str) -> Problem:
    """Recordings that were due and are not in the run, as its writer counted them."""
    many = "1 recording was" if count == 1 else f"{count} recordings were"
    span = (
        ""
        if first is None
        else f" (step {first})"
        if first == last
        else f" (steps {first} to {last})"
    )
    text = f"{many} dropped{span}: {why or 'no reason was stored'}."
    return Problem("dropped", text, file, first, lost=False)


def gave_up(file: str, part: str, fault: str) -> Problem:
    """A part of the recorder that was switched off for the rest of the fit after repeated faults."""
    return Problem(
        "gave up", f"{part} was left out after repeated faults: {fault}", file, lost=False
    )


def rank_absent(rank: int, world_size: int, start: int) -> Problem:
    """A rank of a start that left no readable file."""
    text = f"rank {rank} of {world_size} has no readable file of start {start}: the numbers are of the other ranks."
    return Problem("ranks", text)


def rank_behind(file: str, rank: int, missing: int, first: int, last: int) -> Problem:
    """A rank without recordings of steps that other ranks of the same start recorded."""
    span = f"step {first}" if first == last else f"steps {first} to {last}"
    text = f"rank {rank} lacks {counted(missing, 'recording')} that other ranks have ({span})."
    return Problem("ranks", text, file, first)
