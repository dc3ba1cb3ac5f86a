"""Chunked truncation at many chunk sizes: all chunks of one size walk back side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.chain import Chain
from rnndiag.engine.truncation.parameters import ALL
from rnndiag.engine.truncation.population import Population
from rnndiag.engine.truncation.walks import gradient_of, segments


@dataclass(frozen=True)
class ChunkScores:
    """How chunked truncation does by chunk size."""

    size: tuple[int, ...]
    """The chunk sizes k."""
    bias: Tensor
    """|g_k - g| / |g|, (sizes,)."""
    cosine: Tensor
    """cos(g_k, g), (sizes,)."""
    mean_square: Tensor
    """Unbiased |E (g_k - g)|² over sequences, (sizes,)."""
    mean_square_error: Tensor


def default_sizes(T: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, ... up to T, T included."""
    powers = [2**k for k in range(T.bit_length())]
    return tuple(sorted({k for p in powers for k in (p, 3 * p // 2) if 1 <= k < T} | {T}))


def chunk_scores(
    chain: Chain, population: Population, full: Tensor, sizes: tuple[int, ...]
) -> ChunkScores:
    """Scores of Chunk(k) for every k of `sizes`; full (R, M, P) is the gradient without truncation."""
    replicas, groups, _ = full.shape
    square = population.minibatch(full, full)[ALL]
    bias, cosine, mean, error = [], [], [], []
    for k in sizes:
        cut = gradient_of(chain, population.layout, segments(chain, k, k), replicas * groups)
        cut = cut.unflatten(0, (replicas, groups))
        off = population.moments(cut - full)
        inner = population.minibatch(cut, full)[ALL]
        own = population.minibatch(cut, cut)[ALL]
        bias.append(_ratio(math.sqrt(max(off.minibatch[ALL], 0.0)), math.sqrt(max(square, 0.0))))
        cosine.append(_ratio(inner, math.sqrt(max(square, 0.0) * max(own, 0.0))))
        mean.append(off.mean)
        error.append(off.mean_error)
    columns = [torch.tensor(c, dtype=torch.float64) for c in (bias, cosine, mean, error)]
    return ChunkScores(tuple(sizes), columns[0], columns[1].clamp(-1, 1), *columns[2:])


def _ratio(over: float, under: float) -> float:
    return over / under if under else math.nan
