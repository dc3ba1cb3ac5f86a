"""Sums over sequences from some of them: inner products of gradients on this minibatch, and of their expectation.

Gradients come as buffers (R, M, P): R independent samples of the losses (1: all losses), M groups of sequences. Where
sequences or losses are sampled, a plain square would count the sampling noise; what is given here is unbiased, so it
may come out negative near zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.parameters import ALL, Layout


@dataclass(frozen=True)
class Moments:
    """The inner product of two gradients x and y, each a sum over the sequences of the batch."""

    minibatch: dict[str, float]
    """<x, y> on this minibatch, by parameter and over all."""
    mean: float
    """<E x, E y> from pairs of different sequences, over all parameters; NaN for one group."""
    mean_error: float
    """Its standard error over sequences (jackknife); NaN for fewer than three groups."""
    spread: float
    """B/(B-1) Σ over sequences of <x_b - x/B, y_b - y/B>: for x = y the squared noise of a minibatch gradient."""


@dataclass(frozen=True)
class Population:
    """Which share of a batch was looked at."""

    layout: Layout
    batch: int
    """Sequences in the batch."""
    sampled: int
    """Sequences looked at."""

    def moments(
        self, x: Tensor, y: Tensor | None = None, sums: tuple[Tensor, Tensor] | None = None
    ) -> Moments:
        """<x, y> of two buffers (R, M, P) of the same sequences and losses; y None: x itself.

        sums: the sums of x and of y over their groups, (R, P), where they are known.
        """
        other = x if y is None else y
        replicas, groups, _ = x.shape
        if sums is None:
            sums = (x.sum(1), other.sum(1))
        pairs = [(0, 0)] if replicas == 1 else [(0, 1), (1, 0)] if y is not None else [(0, 1)]
        weight = 1 / len(pairs)
        total: dict[str, float] = {}
        own: dict[str, float] = {}
        diagonal = x.new_zeros(groups, dtype=torch.float64)
        reach = x.new_zeros(groups, dtype=torch.float64)
        for i, j in pairs:
            sum_x, sum_y = sums[0][i], sums[1][j]
            for key, value in self.layout.sums(sum_x * sum_y).items():
                total[key] = total.get(key, 0.0) + weight * float(value)
            same = self._own(x[i], other[j])
            for key, column in same.items():
                own[key] = own.get(key, 0.0) + weight * float(column.sum())
            diagonal += weight * same[ALL]
            across = x[i] @ sum_y
            if y is not None or i != j:
                across = 0.5 * (across + other[j] @ sum_x)
            reach += weight * across.double()
        minibatch = {key: self._of_batch(total[key], own.get(key, 0.0)) for key in total}
        mean, error = self._of_mean(total[ALL], diagonal, reach)
        return Moments(minibatch, mean, error, self._spread(total[ALL], own[ALL], groups))

    def minibatch(
        self, x: Tensor, y: Tensor, sums: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, float]:
        """<x, y> on this minibatch alone, by parameter and over all: `moments` without the rest."""
        if x.shape[0] > 1 or self.sampled < self.batch:
            return self.moments(x, y, sums).minibatch
        one, two = sums or (x.sum(1), y.sum(1))
        return {key: float(value) for key, value in self.layout.sums(one[0] * two[0]).items()}

    def _own(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """<x_g, y_g> of every group (M,): by parameter only where sequences are sampled, else over all."""
        if self.sampled < self.batch:
            return {key: value.double() for key, value in self.layout.sums(x * y).items()}
        if x.data_ptr() == y.data_ptr():
            return {ALL: torch.linalg.vector_norm(x, dim=-1).double().square()}
        return {ALL: (x * y).sum(-1).double()}

    def _of_batch(self, total: float, own: float) -> float:
        m, B = self.sampled, self.batch
        if m == B:
            return total
        return B / m * own + (total - own) * B * (B - 1) / (m * (m - 1))

    def _of_mean(self, total: float, diagonal: Tensor, reach: Tensor) -> tuple[float, float]:
        groups = diagonal.shape[0]
        if groups < 2:
            return float("nan"), float("nan")
        crossed = total - float(diagonal.sum())
        size = (self.batch / self.sampled * groups) ** 2
        mean = size * crossed / (groups * (groups - 1))
        if groups < 3:
            return mean, float("nan")
        left_out = size * (crossed - 2 * (reach - diagonal)) / ((groups - 1) * (groups - 2))
        spread = (left_out - left_out.mean()).square().sum() * (groups - 1) / groups
        return mean, float(spread.sqrt())

    def _spread(self, total: float, own: float, groups: int) -> float:
        if groups < 2:
            return float("nan")
        return self.batch / self.sampled * groups / (groups - 1) * (own - total / groups)
