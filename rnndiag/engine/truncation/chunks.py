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


def few_sizes(T: int) -> tuple[int, ...]:
    """1, 4, 16, ... below T / 2: size k takes k steps one after the other, so these take T / 1.5 at most together."""
    return tuple(4**k for k in range(T.bit_length()) if 4**k <= max(1, T // 2))


def chunk_scores(
    chain: Chain, population: Population, full: Tensor, sizes: tuple[int, ...]
) -> ChunkScores:
    """Scores of Chunk(k) for every k of `sizes`; full (M, P) is the gradient without truncation."""
    whole = full.sum(0)
    square = population.inner(whole, whole)[ALL]
    rows = []
    for k in sizes:
        cut = gradient_of(chain, population.layout, segments(chain, k, k), len(full))
        total = cut.sum(0)
        off = population.square(cut - full, total - whole)
        inner = population.inner(total, whole)[ALL]
        own = population.inner(total, total)[ALL]
        bias = _ratio(math.sqrt(off.minibatch[ALL]), math.sqrt(square))
        rows.append((bias, _ratio(inner, math.sqrt(square * own)), off.mean, off.mean_error))
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    return ChunkScores(
        tuple(sizes), table[:, 0], table[:, 1].clamp(-1, 1), table[:, 2], table[:, 3]
    )


def _ratio(over: float, under: float) -> float:
    return over / under if under else math.nan
