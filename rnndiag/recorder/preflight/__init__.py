"""Preflight: structural faults that recurrent projects make once, found before any training."""

from rnndiag.recorder.preflight.entry import preflight

__all__ = ["preflight"]
