"""Preflight: checks for common structural faults of recurrent projects, before any training."""

from rnndiag.recorder.preflight.entry import preflight
from rnndiag.recorder.preflight.glance import glance

__all__ = ["glance", "preflight"]
