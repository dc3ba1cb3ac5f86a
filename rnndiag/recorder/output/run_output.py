"""The run on disk: opened at the first recording, so that a fit that records nothing leaves no empty run behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnndiag.recorder.faults import Faults
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter


@dataclass
class RunOutput:
    """Writes the recordings of one fit on one rank."""

    path: Path
    faults: Faults
    describe: Callable[[], Mapping[str, Any]]
    """Makes the provenance, when the run is opened."""
    rank: int = 0
    world_size: int = 1
    resumed_from_step: int | None = None
    count: int = 0
    closed: bool = False
    _writer: RunWriter | None = field(default=None, repr=False)

    def wants(self, step: int) -> bool:
        """Whether a recording of this step would be stored, so that nothing is measured for nothing."""
        return self._writer is None or self._writer.wants(step)

    def append(self, recording: Recording) -> bool:
        """Store one recording; whether it is on disk."""
        if self.closed or self.faults.gave_up(_OPENING):
            return False
        stored = False
        with self.faults.guard(_OPENING, "Give another dirpath."):
            if self._writer is None:
                self._writer = self._open()
        writer = self._writer
        if writer is None or writer.stopped:
            return False
        with self.faults.guard("writing a recording"):
            stored = writer.append(recording)
        self.count += stored
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
            strict=self.faults.strict,
        )

    @property
    def opened(self) -> bool:
        """Whether there is anything on disk."""
        return self._writer is not None

    def close(self, reason: str) -> None:
        """The fit is over."""
        self.closed = True
        if self._writer is not None:
            with self.faults.guard("closing the run"):
                self._writer.close(reason)


_OPENING = "opening the run directory"
