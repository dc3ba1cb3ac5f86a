"""The run on disk; created at the first recording, so that a fit without recordings leaves no empty run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnndiag.recorder.faults import Faults
from rnndiag.store.ending import FINISHED
from rnndiag.store.limits import BUDGET_BYTES
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter


@dataclass
class RunOutput:
    """Writes the recordings of one fit on one rank."""

    path: Path
    faults: Faults
    describe: Callable[[], Mapping[str, Any]]
    """Makes the provenance when the run is created."""
    rank: int = 0
    world_size: int = 1
    resumed_from_step: int | None = None
    max_bytes: float = BUDGET_BYTES
    count: int = 0
    """Number of recordings on disk, including that of the end of the fit."""
    steps: int = 0
    """Number of recordings of training steps on disk."""
    closed: bool = False
    _writer: RunWriter | None = field(default=None, repr=False)
    _not_opened: list[int] = field(default_factory=list)
    """Steps whose recordings were lost because the run could not be created yet."""
    _empty: list[int] = field(default_factory=list)
    """Due steps since the last recording in which no recurrent layer was trained."""
    _most_empty: int = 0
    """The largest number of such steps between two recordings."""

    def wants(self, step: int) -> bool:
        """Whether a recording of this step would be stored; if not, it need not be measured."""
        return self._writer is None or self._writer.wants(step)

    def append(self, recording: Recording) -> bool:
        """Store one recording; returns whether it is on disk."""
        if self.closed or self.faults.gave_up(_OPENING):
            return False
        stored = False
        with self.faults.guard(_OPENING, "Give another dirpath."):
            if self._writer is None:
                self._writer = self._open()
        writer = self._writer
        if writer is None:
            self._not_opened.append(recording.step)
            return False
        for step in self._not_opened:
            writer.drop(step, "the run directory could not be opened at first")
        self._not_opened.clear()
        with self.faults.guard("writing a recording"):
            stored = writer.append(recording)
        self.count += stored
        if stored and recording.phase == "train":
            self.steps += 1
            self._most_empty = max(self._most_empty, len(self._empty))
            self._empty.clear()
        return stored

    def _open(self) -> RunWriter:
        provenance: Mapping[str, Any] = {}
        with self.faults.guard("describing the run"):
            provenance = self.describe()
        return RunWriter(
            self.path,
            dict(provenance),
            rank=self.rank,
            world_size=self.world_size,
            resumed_from_step=self.resumed_from_step,
            max_bytes=self.max_bytes,
            strict=self.faults.strict,
        )

    @property
    def opened(self) -> bool:
        """Whether there is anything on disk."""
        return self._writer is not None

    def drop(self, step: int, why: str) -> None:
        """Count a recording that was due at `step` and could not be made."""
        if self._writer is not None:
            self._writer.drop(step, why)

    def add_empty(self, step: int) -> None:
        """Note that a recording was due at `step` but no gradient went through a recurrent layer."""
        self._empty.append(step)

    def close(self, reason: str, final_step: int | None = None) -> None:
        """Close the run with the reason `finished`, or what ended the fit early at `final_step`."""
        self.closed = True
        if self._writer is not None:
            # Layers may be trained in turns; a longer pause than any before is the end of their training.
            if len(self._empty) > 2 * max(1, self._most_empty):
                for step in self._empty:
                    self._writer.drop(step, "no gradient went through a recurrent layer any more")
            with self.faults.guard("closing the run"):
                self._writer.close(
                    reason, final_step, self.faults.given_up, cut_short=reason != FINISHED
                )


_OPENING = "opening the run directory"
