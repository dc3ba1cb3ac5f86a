"""A product of many matrices as Q diag(e^l) U: nothing over- or underflows, and small singular values are not lost.

Q is orthogonal, l holds the logarithms of the scales and U has unit rows. Every factor is taken up by one QR of columns
sorted by size, so U stays well conditioned and all the grading is in l: the singular values are those of diag(e^l) U.
They are exact for factors changed by rounding, eps of each one's norm: where a direction is crushed by 1e16 and brought
back by later factors, nothing computed in float64 can tell.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF_SWEEPS = 3
"""Each QR of the transpose shrinks the coupling of scales e^g apart by e^-g; what is left counts squared."""

WIDTH, MARGIN = 8.0, 5.0
"""A window reads singular values over e^8 with e^5 more on either side: rounding e^13 eps, coupling below e^-30."""

NOISE = 1e-10
"""A row of a factor this small, where exact zeros say that one must be zero, is rounding."""


class GradedProduct:
    """Products of N matrices S x S, float64. `multiply` takes one more factor from the left."""

    def __init__(self, count: int, size: int, device: torch.device) -> None:
        eye = torch.eye(size, dtype=torch.float64, device=device)
        self.basis = eye.repeat(count, 1, 1)
        """Q^T (N, S, S): tangent vectors in rows."""
        self.scale = torch.zeros(count, size, dtype=torch.float64, device=device)
        """l (N, S)"""
        self.rows = eye.repeat(count, 1, 1)
        """U (N, S, S)"""
        self.rank = torch.full((count,), size, device=device)

    def keep(self, count: int) -> None:
        """Go on with the first `count` products only."""
        self.basis, self.scale = self.basis[:count], self.scale[:count]
        self.rows, self.rank = self.rows[:count], self.rank[:count]

    def multiply(self, pushed: Tensor, rank: Tensor) -> None:
        """`pushed` (N, S, S): J applied to every row of `basis`; `rank` (N,): a bound of J's rank, from exact zeros."""
        norm = pushed.norm(dim=-1, keepdim=True)
        scale, order = (self.scale + norm.squeeze(-1).log()).sort(-1, descending=True)
        columns = (pushed / norm.clamp(min=torch.finfo(norm.dtype).tiny)).take_along_dim(
            order.unsqueeze(-1), -2
        )
        basis, upper = torch.linalg.qr(columns.mT)
        rows = self.rows.take_along_dim(order.unsqueeze(-1), -2)
        self.basis = basis.mT
        self.scale, self.rows, size = _unit_rows(scale, _graded(upper, scale) @ rows)
        self.rank = torch.minimum(self.rank, rank)
        self._drop_noise(size)

    def _drop_noise(self, size: Tensor) -> None:
        """Exact zeros in the factors bound the rank: as many of the smallest rows, if they are rounding, are zero."""
        excess = size.shape[-1] - self.rank
        place = size.argsort(-1).argsort(-1)
        noise = (place < excess.unsqueeze(-1)) & (size < NOISE)
        self.scale = self.scale.masked_fill(noise, -torch.inf)
        self.rows = self.rows.masked_fill(noise.unsqueeze(-1), 0.0)

    def log_singular_values(self) -> Tensor:
        """(N, S), descending; -inf where the product is singular."""
        scale, rows = _sorted(self.scale, self.rows)
        for _ in range(HALF_SWEEPS):
            upper = torch.linalg.qr(rows.mT, mode="r").R
            scale, rows, _ = _unit_rows(scale, _graded(upper, scale))
            scale, rows = _sorted(scale, rows)
        return _by_windows(scale, rows)


def _graded(upper: Tensor, scale: Tensor) -> Tensor:
    """R diag(e^l) = diag(e^l) N with N_ij = R_ij e^(l_j - l_i); l descends, so that no entry grows. Returns N."""
    ratio = (scale.unsqueeze(-2) - scale.unsqueeze(-1)).clamp(max=0.0).exp()
    return torch.where(scale.isfinite().unsqueeze(-1), upper * ratio.nan_to_num(0.0), 0.0)


def _unit_rows(scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = rows.norm(dim=-1)
    unit = rows / size.clamp(min=torch.finfo(size.dtype).tiny).unsqueeze(-1)
    return scale + size.log(), unit, size


def _sorted(scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    scale, order = scale.sort(-1, descending=True)
    return scale, rows.take_along_dim(order.unsqueeze(-1), -2)


def _by_windows(scale: Tensor, rows: Tensor) -> Tensor:
    """Singular values of diag(e^l) U, nearly decoupled, one window of scales at a time by an ordinary SVD."""
    top = scale[:, :1]
    depth = (top - scale).masked_fill(~scale.isfinite(), torch.inf)
    result = scale.clone()
    finite = depth[depth.isfinite()]
    for number in finite.div(WIDTH).floor().unique().tolist():
        edge = number * WIDTH
        low, high = edge - MARGIN, edge + WIDTH + MARGIN
        inside = (depth >= low) & (depth < high)
        wanted = ((depth >= edge) & (depth < edge + WIDTH)).any(-1)
        chosen = wanted.nonzero().squeeze(-1)
        span = int(inside[chosen].sum(-1).max())
        first = (depth[chosen] < low).sum(-1).clamp(max=scale.shape[-1] - span)
        place = first.unsqueeze(-1) + torch.arange(span, device=scale.device)
        near = depth[chosen].take_along_dim(place, -1)
        block = rows[chosen].take_along_dim(place.unsqueeze(-1), -2)
        block = block.take_along_dim(place.unsqueeze(-2), -1)
        block = block * (edge - near.clamp(low, high)).exp().unsqueeze(-1)
        values = torch.linalg.svdvals(block).log() + top[chosen] - edge
        mine = (near >= edge) & (near < edge + WIDTH)
        old = result[chosen].take_along_dim(place, -1)
        result[chosen] = result[chosen].scatter(-1, place, torch.where(mine, values, old))
    return result.sort(-1, descending=True).values
