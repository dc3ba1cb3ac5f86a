"""Inner products of gradients: on the sequences looked at, and of their expectation from pairs of different sequences.

Gradients come as buffers (M, P): M groups of sequences. The square of a mean over sequences counts their noise; what
`mean` gives is a U-statistic over pairs of different sequences, unbiased, so it may come out negative near zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.sweep.parameter_layout import ALL, ParameterLayout


@dataclass(frozen=True)
class Moments:
    """The square of a gradient x, a sum over sequences."""

    minibatch: dict[str, float]
    """|x|² of the sequences looked at, by parameter and over all."""
    mean: float
    """|E x|² of a batch, over all parameters; NaN for one group."""
    mean_error: float
    """Its standard error over sequences (jackknife); NaN for fewer than three groups."""
    spread: float
    """σ²: the squared noise of a batch's gradient, B/(B-1) Σ_b |x_b - x/B|²; NaN for one group."""


@dataclass(frozen=True)
class SequenceStatistics:
    """Which share of a batch was looked at."""

    layout: ParameterLayout
    batch: int
    """Sequences in the batch."""
    sampled: int
    """Sequences looked at."""

    @property
    def whole(self) -> bool:
        """Whether every sequence was looked at."""
        return self.sampled == self.batch

    def square(self, x: Tensor, total: Tensor) -> Moments:
        """|x|² of a buffer (M, P) with the sum `total` (P,) over its groups."""
        minibatch = self.inner(total, total)
        own, reach = shares(x, total)
        mean, error = self.of_means(own.new_tensor([minibatch[ALL]]), own[None], reach[None])
        spread = self._spread(minibatch[ALL], own)
        return Moments(minibatch, float(mean), float(error), spread)

    def inner(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """<x, y> of two sums (P,), by parameter and over all."""
        return dict(zip((*self.layout.names, ALL), self.layout.inner(x, y).tolist(), strict=True))

    def of_means(self, total: Tensor, own: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """|E x|² and its standard error of many x, (W,): from |x|² (W,) and what `shares` gives, (W, M)."""
        groups = own.shape[1]
        none = torch.full_like(total, math.nan)
        if groups < 2:
            return none, none
        crossed = total - own.sum(1)
        size = (self.batch / self.sampled * groups) ** 2
        mean = size * crossed / (groups * (groups - 1))
        if groups < 3:
            return mean, none
        left_out = size * (crossed[:, None] - 2 * (reach - own)) / ((groups - 1) * (groups - 2))
        spread = (left_out - left_out.mean(1, keepdim=True)).square().sum(1)
        return mean, (spread * (groups - 1) / groups).sqrt()

    def _spread(self, total: float, own: Tensor) -> float:
        groups = len(own)
        if groups < 2:
            return math.nan
        share = self.batch / self.sampled
        return share * groups / (groups - 1) * (float(own.sum()) - total / groups)


def shares(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """|x_m|² and <x_m, x> of the groups m of a buffer (M, P) with the sum `total` (P,), float64 (M,)."""
    return torch.linalg.vector_norm(x, dim=-1).double().square(), (x @ total).double()
