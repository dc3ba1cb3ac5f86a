"""Capture: from hooks on a model to the LayerRuns of its backward passes."""

from rnndiag.recorder.capture.passes import BackwardPass
from rnndiag.recorder.capture.watch import Capture

__all__ = ["BackwardPass", "Capture"]
