"""The measures: what is recorded of a backward pass, one file and one registry entry per group."""

from rnndiag.recorder.measures import contributions as contributions  # each import registers one
from rnndiag.recorder.measures import estimators as estimators
from rnndiag.recorder.measures import gates as gates
from rnndiag.recorder.measures import jacobians as jacobians
from rnndiag.recorder.measures import lags as lags
from rnndiag.recorder.measures import lyapunov as lyapunov
from rnndiag.recorder.measures import need_screen as need_screen
from rnndiag.recorder.measures import swing as swing
from rnndiag.recorder.measures.measure import (
    MEASURES,
    Extent,
    Measure,
    Subject,
    chosen_measures,
    register_measure,
)
from rnndiag.recorder.measures.take import Taken, take

__all__ = [
    "MEASURES",
    "Extent",
    "Measure",
    "Subject",
    "Taken",
    "chosen_measures",
    "register_measure",
    "take",
]
