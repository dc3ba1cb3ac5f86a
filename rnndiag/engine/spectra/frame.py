"""An orthonormal frame carried along a trajectory, and the growth ln |R_ii| that its re-orthonormalisations see."""

from __future__ import annotations

from dataclasses import dataclass

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
        """Take `pushed` = J v of all vectors; sequences that are over stay as they are."""
        if alive is not None:
            pushed = torch.where(alive[:, None, None], pushed, self.vectors)
        self.vectors = pushed
        self.pending += 1
        if rank is not None:
            if alive is not None:
                rank = rank.masked_fill(~alive, pushed.shape[-1])
            self.rank = rank if self.rank is None else torch.minimum(self.rank, rank)

    def orthonormalise(self) -> Tensor:
        """ln |R_ii| (B, k) since the last QR. Rank that exact zeros take away is -inf, not what rounding left of it."""
        basis, upper = torch.linalg.qr(self.vectors.mT)
        growth: Tensor = upper.diagonal(dim1=-2, dim2=-1).abs().log()
        if self.rank is not None:
            lost = growth.shape[-1] - self.rank
            place = growth.argsort(-1).argsort(-1)
            growth = growth.masked_fill(place < lost.unsqueeze(-1), -torch.inf)
        self.vectors, self.rank, self.pending = basis.mT, None, 0
        return growth
