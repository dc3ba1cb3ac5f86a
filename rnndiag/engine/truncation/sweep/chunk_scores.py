"""Chunked truncation at several chunk sizes against the full gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.parameter_layout import ALL, ParameterLayout
from rnndiag.engine.truncation.sweep.sequence_statistics import inner_products, moments
from rnndiag.engine.truncation.sweep.truncated_adjoints import gradient_of, segments


@dataclass(frozen=True)
class ChunkScores:
    """Scores of chunked truncation by chunk size."""

    size: tuple[int, ...]
    """The chunk sizes k."""
    bias: Tensor
    """|g_k - g| / |g|, (sizes,)."""
    cosine: Tensor
    """cos(g_k, g), (sizes,)."""
    mean_square: Tensor
    """Unbiased |E (g_k - g)|² over sequences, (sizes,)."""
    mean_square_error: Tensor
    """Its standard error, (sizes,)."""


def default_sizes(T: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, ... up to T, T included."""
    powers = [2**k for k in range(T.bit_length())]
    return tuple(sorted({k for p in powers for k in (p, 3 * p // 2) if 1 <= k < T} | {T}))


ChunkScore = tuple[float, float, float, float]
"""Bias, cosine, unbiased mean square and its error."""


def chunk_gradient(chain: Chain, layout: ParameterLayout, k: int, groups: int) -> Tensor:
    """The gradient with chunks of k steps, by group of sequences, (groups, P)."""
    return gradient_of(chain, layout, segments(chain, k, k), groups)


def chunk_score(layout: ParameterLayout, full: Tensor, cut: Tensor) -> ChunkScore:
    """A truncated gradient `cut` (M, P) against the full one (M, P)."""
    whole, total = full.sum(0), cut.sum(0)
    square, own, inner = (
        inner_products(layout, *pair)[ALL]
        for pair in ((whole, whole), (total, total), (total, whole))
    )
    off = moments(layout, cut - full, total - whole)
    bias = _ratio(math.sqrt(off.minibatch[ALL]), math.sqrt(square))
    return (bias, _ratio(inner, math.sqrt(square * own)), off.mean, off.mean_error)


def chunk_scores(found: dict[int, ChunkScore], independent: bool = True) -> ChunkScores:
    """Scores by chunk size, the smallest first; without mean squares where sequences are not independent."""
    sizes = tuple(sorted(found))
    table = torch.tensor([found[k] for k in sizes], dtype=torch.float64).reshape(-1, 4)
    if not independent:
        table[:, 2:] = math.nan
    return ChunkScores(sizes, table[:, 0], table[:, 1].clamp(-1, 1), table[:, 2], table[:, 3])


def _ratio(over: float, under: float) -> float:
    return over / under if under else math.nan
