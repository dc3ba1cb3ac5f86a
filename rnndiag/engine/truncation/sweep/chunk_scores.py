"""Chunked truncation at many chunk sizes: all chunks of one size walk back side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.parameter_layout import ALL
from rnndiag.engine.truncation.sweep.sequence_statistics import SequenceStatistics
from rnndiag.engine.truncation.sweep.truncated_adjoints import gradient_of, segments


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
    chain: Chain, population: SequenceStatistics, full: Tensor, sizes: tuple[int, ...]
) -> ChunkScores:
    """Scores of Chunk(k) for every k of `sizes`; full (M, P) is the gradient without truncation."""
    return scores(
        {
            k: score(
                population,
                full,
                gradient_of(chain, population.layout, segments(chain, k, k), len(full)),
            )
            for k in sizes
        }
    )


Score = tuple[float, float, float, float]
"""Bias, cosine, unbiased mean square and its error."""


def score(population: SequenceStatistics, full: Tensor, cut: Tensor) -> Score:
    """A truncated gradient `cut` (M, P) against the full one."""
    whole, total = full.sum(0), cut.sum(0)
    square, own, inner = (
        population.inner(*pair)[ALL] for pair in ((whole, whole), (total, total), (total, whole))
    )
    off = population.square(cut - full, total - whole)
    bias = _ratio(math.sqrt(off.minibatch[ALL]), math.sqrt(square))
    return (bias, _ratio(inner, math.sqrt(square * own)), off.mean, off.mean_error)


def scores(found: dict[int, Score]) -> ChunkScores:
    """Scores by chunk size, the smallest first."""
    sizes = tuple(sorted(found))
    table = torch.tensor([found[k] for k in sizes], dtype=torch.float64).reshape(-1, 4)
    return ChunkScores(sizes, table[:, 0], table[:, 1].clamp(-1, 1), table[:, 2], table[:, 3])


def _ratio(over: float, under: float) -> float:
    return over / under if under else math.nan
