"""Batches that need no moment of the recorder at all: those between two looks, where no recording is near."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rnndiag.recorder.facts.training_loop import TrainingLoop
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.schedule.light_looks import LightLooks
from rnndiag.recorder.schedule.overhead import Overhead
from rnndiag.recorder.schedule.schedule import Schedule


@dataclass
class QuietBatches:
    """Counts the coming batches that are left alone.

    Even a few lines of Python cost tens of microseconds in a step, since their code has left the caches.
    """

    loop: TrainingLoop
    schedule: Schedule
    looks: LightLooks
    overhead: Overhead
    faults: Faults
    left: int = 0
    """So many coming batches need no moment, but for a glance at their loss."""
    alone: bool = False
    """Whether the running batch is one of them."""
    _free: int = 0
    """Batches from the running one to the next that may be recorded, or is watched for one that is."""

    def batch_started(self, tick: int, chunks: int) -> None:
        """A batch begins that is not left alone; `chunks` before a recorded one are kept."""
        if self.schedule.wanted is not None and not chunks and self.loop.world_size == 1:
            self._free = sys.maxsize  # `next_is_one` asks at each of them
        else:
            self._free = self.schedule.next_tick - tick - chunks

    def batch_ended(self, step: int) -> None:
        """Leave the batches up to the next look alone, but for the one before it, which is timed as a plain step."""
        if not self.loop.steps_within_batch:
            self.left = max(0, min(self._free, self.looks.until_next(step)) - 2)
            self.overhead.plain += self.left
        self._free = 0

    def next_is_one(self) -> bool:
        """Whether the batch that begins is left alone."""
        self.alone = self.left > 0
        if self.alone and self.schedule.wanted is not None:
            with self.faults.guard("the schedule"):
                self.alone = not self.schedule.wanted(self.loop.step)
        if self.alone:
            self.left -= 1
        else:
            self.stop()
        return self.alone

    def stop(self) -> None:
        """The next batch is not left alone."""
        self.overhead.plain -= self.left
        self.left = 0
