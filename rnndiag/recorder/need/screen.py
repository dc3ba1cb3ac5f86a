"""Screen N1: a score test of which past inputs would lower the loss, without fitting anything.

For each lag and kind of feature, U is the debiased sum of squared canonical correlations between the error e = dL/dY
and the feature, both after the present has been projected out. A product of two different sequences has mean zero if
the past does not help, so K = S S' over the sums S of sequences, without its diagonal, gives U and its standard
deviation.

It selects lags for the fitted skips to try. It is biased near a solved net, so it never decides alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.recorder.need.features import Block, Rows

RANK = 8
"""Number of principal components of the error that are used."""
SINGLE_FROM = 4096
"""From this many rows on the screen computes in single precision: it is the costliest part and only selects lags."""
SMALLEST = 1e-5


@dataclass(frozen=True)
class Score:
    """Result of the screen for one block of features."""

    block: Block
    explained: float
    """U: share of the error that a skip on these features would explain; may be negative."""
    deviation: float
    """Standard deviation of U if the past does not help."""

    @property
    def z(self) -> float:
        """U divided by its standard deviation."""
        return self.explained / self.deviation if self.deviation > 0 else 0.0


def inverse_root(second_moment: Tensor, ridge: float, most: int | None = None) -> Tensor:
    """(size, rank): V (w + ridge * mean w)^(-1/2) of a symmetric matrix V w V', small eigenvalues dropped."""
    w, v = torch.linalg.eigh(second_moment)
    kept = w > w.max().clamp(min=1e-300) * SMALLEST
    w, v = w[kept], v[:, kept]
    if most is not None:
        w, v = w[-most:], v[:, -most:]
    whitened: Tensor = v / (w + ridge * w.mean()).sqrt()
    return whitened


class Screen:
    """Computes the scores of features, given the present.

    Args:
        rows: Rows of the sequences that are screened.
        errors: e at these rows, (rows, H).
        residual: Project the present out. Without, only the mean.
        single: Compute in single precision. None: where there are many rows.
    """

    def __init__(
        self, rows: Rows, errors: Tensor, residual: bool = True, single: bool | None = None
    ) -> None:
        self._rows = rows
        errors = errors.double()
        n = len(errors)
        present = rows.present()[:, : max(1, min(10**6 if residual else 1, n // 10))]
        self._q = present @ inverse_root(present.T @ present, 1e-6)  # orthonormal columns
        leverage = self._q.square().sum(1).clamp(max=0.9)
        left = errors - self._q @ (self._q.T @ errors)
        white = left @ inverse_root(left.T @ left, 1e-2, RANK)
        single = n >= SINGLE_FROM if single is None else single
        self._work = torch.float32 if single else torch.float64
        self._q = self._q.to(self._work)
        self._errors = (white / (1 - leverage).sqrt().unsqueeze(1)).to(self._work)
        self._shrink = float((1 - leverage).mean())
        self._noise = float(self._errors.square().sum()) / n
        self._place, self._q_by_sequence = self._by_sequence()
        self._errors_by_sequence = self._padded(self._errors)

    def _by_sequence(self) -> tuple[Tensor, Tensor]:
        """Row indices of each sequence, padded with the index of a zero row, (sequences, most rows)."""
        owner, n = self._rows.owner, len(self._rows)
        counts = torch.bincount(owner, minlength=self._rows.n_sequences)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(n, device=owner.device) - starts[owner]  # rows lie sequence by sequence
        place = torch.full((len(counts), int(counts.max())), n, device=owner.device)
        place[owner, rank] = torch.arange(n, device=owner.device)
        self._place = place
        return place, self._padded(self._q)

    def _padded(self, values: Tensor) -> Tensor:
        """Values (rows, k) as (sequences, most rows, k)."""
        return torch.cat([values, torch.zeros_like(values[:1])])[self._place]

    def score(self, block: Block) -> Score | None:
        """Score one block; None if its features are determined by the present."""
        features = self._rows.lagged(block).to(self._work)
        left = features - self._q @ (self._q.T @ features)
        left = left[:, left.square().sum(0) > 1e-9 * max(len(left), 1)]
        if not left.shape[1]:
            return None
        white = self._padded(left @ inverse_root(left.T @ left, 1e-2))
        sums = (white.transpose(1, 2) @ self._errors_by_sequence).flatten(1)
        k = sums @ sums.T
        k.fill_diagonal_(0.0)
        # Projecting the present out correlates the residuals of different sequences: if the past does not help, the
        # sum of K has this expectation, sum_b |Q_b' F_b|^2 times the variance of the error.
        overlap = float((self._q_by_sequence.transpose(1, 2) @ white).square().sum())
        deviation = math.sqrt(2 * float(k.square().sum()))
        explained = (float(k.sum()) - overlap * self._noise) * self._shrink
        return Score(block, explained, deviation * self._shrink)

    def scores(self, blocks: Iterable[Block]) -> list[Score]:
        """Scores of all blocks that have one."""
        found = (self.score(block) for block in blocks)
        return [one for one in found if one is not None]
