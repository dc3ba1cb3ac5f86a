"""|g_t| of steps whose squares under- or overflow, or whose samples cancel: in double precision, at their own scale.

A vanishing gradient of 1e-25 is a number in single precision; its square is zero there, and its norm would read zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

CANCELLED = 1024.0
"""|g_t|² below this many roundings of (Σ_b |g_{t,b}|)² is taken anew: a Gram's sum has lost it in part."""

MARGIN = 1e4
"""Sizes this close to where their squares leave the precision's range are taken anew."""

FORMED_BYTES = 64 * 2**20
"""Contributions formed at once are of at most this size."""


def out_of_range(sizes: Tensor) -> Tensor:
    """Where the squares of `sizes` are not safe in their precision, as (...) bool; so is a NaN."""
    limits = torch.finfo(sizes.dtype)
    low, high = limits.tiny**0.5 * MARGIN, limits.max**0.5 / MARGIN
    return torch.logical_not((sizes >= low) & (sizes <= high))


def cancelled(squares: Tensor, bound: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a sum that may not exceed `bound` is so small that what is left of it is rounding."""
    rounding = CANCELLED * torch.finfo(dtype).eps
    return torch.lt(squares, rounding * bound)


def worth_it(left: Tensor, right: Tensor | None, doubtful: Tensor) -> Tensor:
    """The doubtful steps (T,) whose contributions are finite and not all exactly zero, as their numbers."""
    times = doubtful.nonzero().squeeze(-1)
    for side in (left, right):
        if side is not None and len(times):
            size = side[times].abs().flatten(1).amax(1)
            times = times[(size > 0) & size.isfinite()]
    return times


def norms(left: Tensor, right: Tensor | None, blocks: int) -> tuple[Tensor, Tensor]:
    """|g_t| of each block of rows (blocks, T) and |g_{t,b}| (T, B), both float64, of g_t = Σ_b left_b right_b^T.

    left (T, B, m), right (T, B, n), or None: g_t = Σ_b left_b. Steps are formed, at most FORMED_BYTES at a time.
    """
    a, scale = _scaled(left)
    each = torch.linalg.vector_norm(a, dim=-1)
    if right is None:
        formed = a.sum(1).unflatten(-1, (blocks, -1))
        size = torch.linalg.vector_norm(formed, dim=-1)
        return size.mT * scale, each * scale[:, None]
    b, other = _scaled(right)
    scale = scale * other
    each = each * torch.linalg.vector_norm(b, dim=-1)
    at_once = max(1, FORMED_BYTES // max(1, 8 * a.shape[-1] * b.shape[-1]))
    pieces = []
    for x, y in zip(a.split(at_once), b.split(at_once), strict=True):
        formed = (x.mT @ y).unflatten(1, (blocks, -1))
        pieces.append(torch.linalg.vector_norm(formed, dim=(-2, -1)))
    return torch.cat(pieces).mT * scale, each * scale[:, None]


def _scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """(T, B, n) in double with the largest entry of each step 1, and that entry's size (T,)."""
    wide = values.double()
    scale = wide.abs().flatten(1).amax(1)
    return wide / scale[:, None, None], scale
