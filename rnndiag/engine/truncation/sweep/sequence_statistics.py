"""Statistics of a gradient over the sequences of a batch: its squared mean without the noise, and the noise itself.

Gradients come as buffers (M, P): M groups of sequences, P parameters. The square of a sum over sequences contains their
noise; the U-statistic over pairs of different groups does not. It is unbiased, so it may come out negative near zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.parameter_layout import ALL, ParameterLayout
from rnndiag.engine.truncation.sweep.truncated_adjoints import gradient_of

BUFFER_BYTES = 512 * 2**20
"""Memory limit of the gradients by group of sequences."""
GROUPS = 8
"""Number of groups for which tails are kept if those of all sequences would take more than `TAIL_BYTES`."""
TAIL_BYTES = 2**20


def group_count(layout: ParameterLayout, sequences: int, like: Tensor) -> int:
    """Number M of equal groups of sequences whose gradients are kept: single sequences, if memory allows."""
    one = 4 * layout.P * like.element_size()
    fitting = min(max(1, BUFFER_BYTES // max(1, one)), sequences)
    return max(k for k in range(1, sequences + 1) if sequences % k == 0 and k <= fitting)


def tail_groups(by_sequence: Tensor) -> Tensor:
    """(M, P) -> the same gradients in as many groups as tails are kept for: sums of neighbouring groups."""
    groups = len(by_sequence)
    if by_sequence.numel() * by_sequence.element_size() <= TAIL_BYTES or groups <= GROUPS:
        return by_sequence
    fewer = max(k for k in range(1, GROUPS + 1) if groups % k == 0)
    grouped: Tensor = by_sequence.unflatten(0, (fewer, -1)).sum(1)
    return grouped


@dataclass(frozen=True)
class Moments:
    """The square of a gradient x that is a sum over sequences."""

    minibatch: dict[str, float]
    """|x|² of the batch, by parameter and over all."""
    mean: float
    """Unbiased |E x|², over all parameters; NaN for one group."""
    mean_error: float
    """Its standard error over sequences (jackknife); NaN for fewer than three groups."""
    spread: float
    """σ², the squared noise of x: B/(B-1) Σ_b |x_b - x/B|²; NaN for one group."""


def moments(layout: ParameterLayout, x: Tensor, total: Tensor) -> Moments:
    """The moments of a buffer (M, P) with the sum `total` (P,) over its groups."""
    minibatch = inner_products(layout, total, total)
    own, with_total = group_products(x, total)
    square = own.new_tensor([minibatch[ALL]])
    mean, error = mean_squares(square, own[None], with_total[None])
    groups, spread = len(own), math.nan
    if groups > 1:
        spread = groups / (groups - 1) * (float(own.sum()) - minibatch[ALL] / groups)
    return Moments(minibatch, float(mean), float(error), spread)


def inner_products(layout: ParameterLayout, x: Tensor, y: Tensor) -> dict[str, float]:
    """<x, y> of two gradients (P,), by parameter and over all."""
    return dict(zip((*layout.names, ALL), layout.inner(x, y).tolist(), strict=True))


def group_products(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """|x_m|² and <x_m, x> of the groups m of a buffer (M, P) with the sum `total` (P,), float64 (M,)."""
    return torch.linalg.vector_norm(x, dim=-1).double().square(), (x @ total).double()


def mean_squares(square: Tensor, own: Tensor, with_total: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased |E x|² of W gradients x, and its standard error, both (W,); NaN where there are too few groups.

    Args:
        square: |x|², (W,).
        own: |x_m|² of the M groups, (W, M).
        with_total: <x_m, x>, (W, M).
    """
    groups = own.shape[1]
    unknown = torch.full_like(square, math.nan)
    if groups < 2:
        return unknown, unknown
    crossed = square - own.sum(1)
    mean = groups**2 * crossed / (groups * (groups - 1))
    if groups < 3:
        return mean, unknown
    without_one = crossed[:, None] - 2 * (with_total - own)
    without_one = groups**2 * without_one / ((groups - 1) * (groups - 2))
    spread = (without_one - without_one.mean(1, keepdim=True)).square().sum(1)
    return mean, (spread * (groups - 1) / groups).sqrt()


def sequence_noise(chain: Chain, layout: ParameterLayout, delta: State, by_group: Tensor) -> float:
    """σ, the standard deviation of the batch's gradient; NaN for one sequence.

    Args:
        chain: The chain.
        layout: Its parameters.
        delta: Total adjoints.
        by_group: The gradient by group of sequences, (M, P); where M < B the sequences are taken one by one.
    """
    if chain.B < 2:
        return math.nan
    total = by_group.sum(0)
    if len(by_group) == chain.B:
        return math.sqrt(max(moments(layout, by_group, total).spread, 0.0))
    own = float(sequence_norms(chain, layout, delta).double().square().sum())
    spread = own - float(total.double().square().sum()) / chain.B
    return math.sqrt(max(spread * chain.B / (chain.B - 1), 0.0))


def sequence_norms(chain: Chain, layout: ParameterLayout, delta: State) -> Tensor:
    """|g_b| of every sequence's share of the gradient, (B,)."""
    norms = []
    for b in range(chain.B):
        own = tuple(part[:, b : b + 1] for part in delta)
        norms.append(gradient_of(chain.select([b]).prepared(), layout, own).norm())
    return torch.stack(norms)
