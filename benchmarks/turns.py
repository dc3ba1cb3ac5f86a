"""Two trainings of one process that take turns of a few steps each, A B B A, so that noise meets both alike.

Each runs in a thread of its own, and only the one whose turn it is moves. Wall time and the thread's CPU time are taken
of every turn. Numbers: `rounds(...)` gives both trainings' turns side by side.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as L
import torch

ORDER = (0, 1, 1, 0)


@dataclass(frozen=True)
class Turn:
    """What one turn took, in seconds."""

    wall: float
    cpu: float


@dataclass
class Table:
    """Whose turn it is."""

    players: int = 2
    lock: threading.Condition = field(default_factory=threading.Condition)
    turn: int = 0
    out: set[int] = field(default_factory=set)

    @property
    def owner(self) -> int:
        """The one whose turn it is; those who are done are passed over."""
        wanted = ORDER[self.turn % len(ORDER)]
        return wanted if wanted not in self.out else 1 - wanted

    def wait(self, player: int) -> None:
        """Until it is this player's turn."""
        with self.lock:
            self.lock.wait_for(lambda: self.owner == player)

    def pass_on(self, player: int, done: bool = False) -> None:
        """The turn is over."""
        with self.lock:
            self.turn += 1
            if done:
                self.out.add(player)
            self.lock.notify_all()


class Turnstile(L.Callback):
    """Hands the turn over every so many batches. It comes first among the callbacks."""

    def __init__(self, table: Table, player: int, block: int) -> None:
        self.turns: list[Turn] = []
        self._table, self._player, self._block = table, player, block
        self._wall = self._cpu = 0.0

    def begin(self) -> None:
        """Wait for the turn, and start the clocks."""
        self._table.wait(self._player)
        self._wall, self._cpu = time.perf_counter(), time.thread_time()

    def end(self, done: bool = False) -> None:
        """Stop the clocks, and hand over."""
        wall, cpu = time.perf_counter() - self._wall, time.thread_time() - self._cpu
        self.turns.append(Turn(wall, cpu))
        self._table.pass_on(self._player, done)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """A block of batches is over."""
        if trainer.fit_loop.total_batch_idx % self._block == 0 and trainer.fit_loop.total_batch_idx:
            self.end()
            others = [callback for callback in trainer.callbacks if callback is not self]
            for callback in others:  # to wait is no training: whoever keeps a clock is to stop it
                callback.on_validation_start(trainer, module)
            self.begin()
            for callback in others:
                callback.on_validation_end(trainer, module)


def rounds(
    trainings: Sequence[Callable[[Turnstile], None]], block: int, threads: int
) -> list[list[Turn]]:
    """Run two trainings in turns; each is called with its turnstile and is over when it returns."""
    table = Table()
    stiles = [Turnstile(table, player, block) for player in range(2)]
    faults: list[BaseException] = []

    def play(training: Callable[[Turnstile], None], stile: Turnstile) -> None:
        torch.set_num_threads(threads)
        stile.begin()
        try:
            training(stile)
        except BaseException as fault:  # noqa: BLE001  # raised again where the turns are waited for
            faults.append(fault)
        finally:
            stile.end(done=True)

    running = [
        threading.Thread(target=play, args=pair) for pair in zip(trainings, stiles, strict=True)
    ]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if faults:
        raise faults[0]
    return [stile.turns for stile in stiles]
