"""Capture: from hooks on a model to the LayerRuns of its backward passes."""

from rnndiag.recorder.capture.loops import Loops
from rnndiag.recorder.capture.passes import BackwardPass, runs_beside_loops
from rnndiag.recorder.capture.watch import WATCHING, Capture

__all__ = ["WATCHING", "BackwardPass", "Capture", "Loops", "runs_beside_loops"]
