"""An orthonormal frame of tangent vectors, its growth ln |R_ii| at each QR, and the number of steps between QRs."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log

import torch
from torch import Tensor


@dataclass
class TangentFrame:
    """k tangent vectors a sequence, in rows, with the steps taken and the rank seen since the last QR."""

    vectors: Tensor
    """(B, k, S) float64"""
    rank: Tensor | None = None
    """(B,): the least rank of the Jacobians applied since, counted from exactly zero rows; None: all of S."""
    pending: int = 0

    @staticmethod
    def random(
        run_shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
    ) -> TangentFrame:
        """(B, k, S): the same random orthonormal frame for every sequence, from a generator of its own."""
        batch, count, size = run_shape
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(size, count, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(start).Q.mT.to(dtype=dtype, device=device)
        return TangentFrame(basis.expand(batch, count, size))

    def push(self, pushed: Tensor, rank: Tensor | None, alive: Tensor | None) -> None:
        """Replace the vectors by `pushed` = J v; sequences that have ended stay unchanged."""
        if alive is not None:
            pushed = torch.where(alive[:, None, None], pushed, self.vectors)
        self.vectors = pushed
        self.pending += 1
        if rank is not None:
            if alive is not None:
                rank = rank.masked_fill(~alive, pushed.shape[-1])
            self.rank = rank if self.rank is None else torch.minimum(self.rank, rank)

    def orthonormalise(self) -> Tensor:
        """ln |R_ii| (B, k) since the last QR. -inf for directions removed by exact zeros, instead of rounding noise."""
        basis, upper = torch.linalg.qr(self.vectors.mT)
        growth: Tensor = upper.diagonal(dim1=-2, dim2=-1).abs().log()
        if self.rank is not None:
            lost = growth.shape[-1] - self.rank
            place = growth.argsort(-1).argsort(-1)
            growth = growth.masked_fill(place < lost.unsqueeze(-1), -torch.inf)
        self.vectors, self.rank, self.pending = basis.mT, None, 0
        return growth


LOG_CONDITION = log(1e7)
"""Limit of ln(largest / smallest scale) of a frame before a QR: 7 of the 16 digits of float64."""

LONGEST = 50


class Interval:
    """Number of steps between QRs: fixed, or growing by one while the scales are expected to stay within
    LOG_CONDITION.

    An adaptive interval that exceeded this limit is never tried again.
    """

    def __init__(self, steps: int | None) -> None:
        self.fixed = steps is not None
        self.steps = steps or 1
        self.longest = 0
        self.log_condition = 0.0
        """The largest spread of ln |R_ii| at any re-orthonormalisation."""
        self._cap = LONGEST

    def see(self, log_scales: Tensor, steps: int) -> None:
        """Update by log_scales (B, k): ln |R_ii| after `steps` steps, NaN for sequences that have ended."""
        spread = float((log_scales.amax(-1) - log_scales.amin(-1)).max())
        if not isfinite(spread):
            spread = _finite_spread(log_scales)
        self.longest = max(self.longest, steps)
        self.log_condition = max(self.log_condition, spread)
        if self.fixed:
            return
        if spread > LOG_CONDITION:
            self._cap = max(1, min(self._cap, steps - 1))
        elif steps == self.steps and spread * (steps + 1) <= LOG_CONDITION * steps:
            self.steps = steps + 1
        self.steps = min(self.steps, self._cap)


def _finite_spread(log_scales: Tensor) -> float:
    """The largest spread of finite scales within a sequence; 0 if there are none."""
    known = log_scales.isfinite()
    high = log_scales.masked_fill(~known, -torch.inf).amax(-1)
    low = log_scales.masked_fill(~known, torch.inf).amin(-1)
    return float((high - low).clamp(min=0.0).max())
