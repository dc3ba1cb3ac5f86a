"""Measures the need of memory at the end of a fit on the validation batches: the callback's `need=True`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any, TextIO

from rnndiag.recorder.need.entry import memory_need
from rnndiag.stats.need import MemoryNeed

WIDTH = 24
"""Width of the progress bar in characters."""


def need_of_fit(trainer: Any, module: Any, window: int | None) -> MemoryNeed:
    """Run `memory_need` on the validation batches, or on training batches if there are none.

    Args:
        trainer: The Trainer after its last step.
        module: The LightningModule. Its step gives the loss, also of validation batches.
        window: The window that training used; None: the reach of the gradient is the limit.
    """
    batches, notes = _batches(trainer)
    moved = (trainer.strategy.batch_to_device(batch) for batch in batches)
    found = memory_need(module, moved, beyond=window, progress=ProgressBar(sys.stderr))
    limit = found.limit if window is None else "window"
    return replace(found, limit=limit, notes=(*found.notes, *notes))


def _batches(trainer: Any) -> tuple[Iterable[Any], tuple[str, ...]]:
    loaders = trainer.val_dataloaders
    if loaders is None or (isinstance(loaders, list | tuple) and not loaders):
        return trainer.train_dataloader, (
            "There are no validation batches: memorised training batches hide a need.",
        )
    several = list(loaders) if isinstance(loaders, list | tuple) else [loaders]
    return chain.from_iterable(several), ()


class ProgressBar:
    """Draws the finished share on one line of a terminal; no output if the stream is not a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, stage: str, share: float) -> None:
        """Draw the bar at `share` (0 to 1) of `stage`."""
        if not self._stream.isatty():
            return
        done = round(share * WIDTH)
        bar = "#" * done + "." * (WIDTH - done)
        end = "\n" if share >= 1 else ""
        self._stream.write(f"\rneed of memory [{bar}] {share:4.0%} {stage:16s}{end}")
        self._stream.flush()
