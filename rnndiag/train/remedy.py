"""Applies a recommended window to a truncated training loop."""

from __future__ import annotations

from typing import Any

from rnndiag.errors import NotSupported
from rnndiag.train.chunk_loop import ChunkLoop
from rnndiag.train.lightning_mixin import TruncatedBPTT


def apply_remedy(target: TruncatedBPTT | ChunkLoop, remedy: Any) -> int:
    """Set the window that a remedy names.

    Chunks, and so the number of optimizer steps, do not change: only the losses of a chunk reach further back.

    Args:
        target: A module with the mixin, or a chunk loop.
        remedy: The remedy of a cause of `rnndiag.diagnose` whose `knob` is "window"; its `value` is a number of steps.

    Returns:
        The window in use from the next chunk on.

    Raises:
        NotSupported: The remedy changes something else.

    Example:
        >>> diagnosis = rnndiag.diagnose(rnndiag.open_run("runs/exp1"))
        >>> rnndiag.train.apply_remedy(model, diagnosis.causes[0].remedy)
        200
    """
    if getattr(remedy, "knob", None) != "window":
        raise NotSupported(
            f"The remedy changes {getattr(remedy, 'knob', None)!r}, not a window.",
            "Apply it by hand: its sentence says how.",
        )
    window = int(remedy.value)
    if isinstance(target, TruncatedBPTT):
        target.set_window(window)
    else:
        target.looks, target.window = None, window
    return window
