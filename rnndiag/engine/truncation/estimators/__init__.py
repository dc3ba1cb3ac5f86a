"""Gradient estimators, one file each.

A new one is a file here and a line in `ESTIMATORS`; its `recorded` selects which of them the callback scores.
"""

from rnndiag.engine.truncation.estimators.bernoulli import Artbp, Bernoulli, artbp
from rnndiag.engine.truncation.estimators.cell_only import CellOnly
from rnndiag.engine.truncation.estimators.chunk import Chunk
from rnndiag.engine.truncation.estimators.clip import Clip
from rnndiag.engine.truncation.estimators.estimator import Estimator
from rnndiag.engine.truncation.estimators.full import Full
from rnndiag.engine.truncation.estimators.roulette import Roulette
from rnndiag.engine.truncation.estimators.source_step import SourceStep
from rnndiag.engine.truncation.estimators.uniform import Uniform
from rnndiag.engine.truncation.estimators.window import Window

ESTIMATORS: dict[str, type[Estimator]] = {
    "full": Full,
    "window": Window,
    "chunk": Chunk,
    "source_step": SourceStep,
    "bernoulli": Bernoulli,
    "uniform": Uniform,
    "roulette": Roulette,
    "cell_only": CellOnly,
    "clip": Clip,
}
"""Name in configurations -> estimator."""

__all__ = [
    "ESTIMATORS",
    "Artbp",
    "Bernoulli",
    "CellOnly",
    "Chunk",
    "Clip",
    "Full",
    "Roulette",
    "SourceStep",
    "Uniform",
    "Window",
    "artbp",
]
