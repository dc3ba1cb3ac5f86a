"""`rnndiag.memory_need`: need, use and reach over lag, of a trained model."""

from rnndiag.recorder.need.entry import memory_need

__all__ = ["memory_need"]
