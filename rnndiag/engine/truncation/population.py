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
    """Σ over sequences of <x_b - x/B, y_b - y/B>, times B / (B-1): for x = y the squared noise of a minibatch gradient."""


@dataclass(frozen=True)
class Population:
    """Which share of a batch was looked at."""

    layout: Layout
    batch: int
    """Sequences in the batch."""
    sampled: int
    """Sequences looked at."""

    def moments(self, x: Tensor, y: Tensor) -> Moments:
        """<x, y> of two buffers (R, M, P) of the same sequences and losses."""
        replicas, groups, _ = x.shape
        pairs = [(0, 0)] if replicas == 1 else [(0, 1), (1, 0)]
        weight = 1 / len(pairs)
        total: dict[str, float] = {}
        own: dict[str, float] = {}
        diagonal = x.new_zeros(groups, dtype=torch.float64)
        reach = x.new_zeros(groups, dtype=torch.float64)
        for i, j in pairs:
            sum_x, sum_y = x[i].sum(0), y[j].sum(0)
            for slot in self.layout.slots:
                part = slice(slot.start, slot.stop)
                same = torch.linalg.vecdot(x[i][:, part], y[j][:, part]).double()
                both = torch.dot(sum_x[part], sum_y[part]).double()
                total[slot.name] = total.get(slot.name, 0.0) + weight * float(both)
                own[slot.name] = own.get(slot.name, 0.0) + weight * float(same.sum())
                diagonal += weight * same
                mixed = x[i][:, part] @ sum_y[part] + y[j][:, part] @ sum_x[part]
                reach += weight * 0.5 * mixed.double()
        total[ALL], own[ALL] = sum(total.values()), sum(own.values())
        minibatch = {key: self._of_batch(total[key], own[key]) for key in total}
        mean, error = self._of_mean(total[ALL], diagonal, reach)
        return Moments(minibatch, mean, error, self._spread(total[ALL], own[ALL], groups))

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
