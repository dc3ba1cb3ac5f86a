"""Training with truncated and randomized gradients, and with a window chosen during training."""

from rnndiag.engine.truncation.estimators import (
    ESTIMATORS,
    Bernoulli,
    CellOnly,
    Chunk,
    Full,
    Roulette,
    SourceStep,
    Uniform,
    Window,
    artbp,
)
from rnndiag.engine.truncation.gradient_scale import cell_only, scale_gradient
from rnndiag.train.auto import Auto, Change
from rnndiag.train.between_steps import between_steps
from rnndiag.train.chunk_loop import BatchResult, ChunkLoop
from rnndiag.train.lightning_mixin import TruncatedBPTT
from rnndiag.train.look import Look
from rnndiag.train.plain_updates import PlainUpdates, truncated_bptt
from rnndiag.train.recurrence import SequenceModule
from rnndiag.train.remedy import apply_remedy
from rnndiag.train.splitting import TimeBatch
from rnndiag.train.unroll import chunks_of, truncated_unroll, unroll

__all__ = [
    "ESTIMATORS",
    "Auto",
    "BatchResult",
    "Bernoulli",
    "CellOnly",
    "Change",
    "Chunk",
    "ChunkLoop",
    "Full",
    "Look",
    "PlainUpdates",
    "Roulette",
    "SequenceModule",
    "SourceStep",
    "TimeBatch",
    "TruncatedBPTT",
    "Uniform",
    "Window",
    "apply_remedy",
    "artbp",
    "between_steps",
    "cell_only",
    "chunks_of",
    "scale_gradient",
    "truncated_bptt",
    "truncated_unroll",
    "unroll",
]
