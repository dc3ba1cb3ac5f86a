"""The recordings of a run as a sequence, read one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from rnndiag.store.collect import Collector
from rnndiag.store.ranks import pooled_recording
from rnndiag.store.recording import Recording
from rnndiag.store.segment import Place


class Recordings(Sequence[Recording]):
    """Recordings in order of step, ranks pooled. Each is read on access and not cached."""

    def __init__(self, collector: Collector, groups: Sequence[Sequence[Place]]) -> None:
        self._collector, self._groups = collector, groups

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, position: int) -> Recording: ...
    @overload
    def __getitem__(self, position: slice) -> Recordings: ...
    def __getitem__(self, position: int | slice) -> Recording | Recordings:
        if isinstance(position, slice):
            return Recordings(self._collector, self._groups[position])
        return pooled_recording(self._collector.recordings(self._groups[position], None))

    def __iter__(self) -> Iterator[Recording]:
        """All readable recordings; damaged ones are skipped and listed in `run.problems`."""
        for group in self._groups:
            found = self._collector.recordings(group, None, lenient=True)
            if found:
                yield pooled_recording(found)
