"""Preflight: structural faults that recurrent projects make once, found before any training."""

from rnndiag.recorder.preflight.entry import preflight
from rnndiag.recorder.preflight.glance import glance

__all__ = ["glance", "preflight"]
