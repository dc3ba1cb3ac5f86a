"""Batches in which the recorder does nothing: between two examined steps and far from any recording."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rnndiag.recorder.facts.training_loop import TrainingLoop
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.schedule.examined_steps import ExaminedSteps
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.schedule.schedule import Schedule


@dataclass
class SkippedBatches:
    """Counts the coming batches in which the recorder does nothing.

    Even a few lines of Python cost tens of microseconds in a step, since their code has left the caches.
    """

    loop: TrainingLoop
    schedule: Schedule
    examined: ExaminedSteps
    overhead: Overhead
    faults: Faults
    left: int = 0
    """Number of coming batches of which only the loss is checked."""
    skips: bool = False
    """Whether the current batch is one of them."""
    _free: int = 0
    """Batches until the next one that may be recorded, or is observed for a recording to come."""

    def batch_started(self, tick: int, chunks: int) -> None:
        """Start of a batch that is not skipped; `chunks`: chunks kept before a recorded step."""
        if self.schedule.wanted is not None and not chunks and self.loop.world_size == 1:
            self._free = sys.maxsize  # `next_is_one` asks at each of them
        else:
            self._free = self.schedule.next_tick - tick - chunks

    def batch_ended(self, step: int) -> None:
        """Skip the batches up to the next examined one, except the last, which is timed as a plain step."""
        if not self.loop.steps_within_batch:
            self.left = max(0, min(self._free, self.examined.until_next(step)) - 2)
            self.overhead.plain += self.left
        self._free = 0

    def next_is_one(self) -> bool:
        """Whether the batch that begins is skipped."""
        self.skips = self.left > 0
        if self.skips and self.schedule.wanted is not None:
            with self.faults.guard("the schedule"):
                self.skips = not self.schedule.wanted(self.loop.step)
        if self.skips:
            self.left -= 1
        else:
            self.stop()
        return self.skips

    def stop(self) -> None:
        """Do not skip the next batch."""
        self.overhead.plain -= self.left
        self.left = 0
