"""Inner products of gradients: on the sequences looked at, and of their expectation from pairs of different sequences.

Gradients come as buffers (M, P): M groups of sequences. The square of a mean over sequences counts their noise; what
`mean` gives is a U-statistic over pairs of different sequences, unbiased, so it may come out negative near zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.parameters import ALL, Layout


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
class Population:
    """Which share of a batch was looked at."""

    layout: Layout
    batch: int
    """Sequences in the batch."""
    sampled: int
    """Sequences looked at."""

    def square(self, x: Tensor, total: Tensor) -> Moments:
        """|x|² of a buffer (M, P) with the sum `total` (P,) over its groups."""
        minibatch = self.inner(total, total)
        own = torch.linalg.vector_norm(x, dim=-1).double().square()
        mean, error = self._of_mean(minibatch[ALL], own, (x @ total).double())
        return Moments(minibatch, mean, error, self._spread(minibatch[ALL], own))

    def inner(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """<x, y> of two sums (P,), by parameter and over all."""
        return dict(zip((*self.layout.names, ALL), self.layout.inner(x, y).tolist(), strict=True))

    def _of_mean(self, total: float, own: Tensor, reach: Tensor) -> tuple[float, float]:
        groups = len(own)
        if groups < 2:
            return math.nan, math.nan
        crossed = total - float(own.sum())
        size = (self.batch / self.sampled * groups) ** 2
        mean = size * crossed / (groups * (groups - 1))
        if groups < 3:
            return mean, math.nan
        left_out = size * (crossed - 2 * (reach - own)) / ((groups - 1) * (groups - 2))
        spread = (left_out - left_out.mean()).square().sum() * (groups - 1) / groups
        return mean, float(spread.sqrt())

    def _spread(self, total: float, own: Tensor) -> float:
        groups = len(own)
        if groups < 2:
            return math.nan
        share = self.batch / self.sampled
        return share * groups / (groups - 1) * (float(own.sum()) - total / groups)
