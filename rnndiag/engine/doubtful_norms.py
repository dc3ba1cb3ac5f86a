"""|g_t| of steps whose squares under- or overflow, at a scale of their own; or whose samples cancel, formed in double.

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


def scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """(T, B, n) with the largest entry of each step 1, in single precision at least, and that entry's size (T,)."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    scale = wide.abs().flatten(1).amax(1)
    return wide / scale[:, None, None], scale.double()


def formed(left: Tensor, right: Tensor, blocks: int) -> Tensor:
    """|g_t| of each block of rows (blocks, T) of g_t = Σ_b left_b right_b^T, from g_t itself, float64.

    left (T, B, m), right (T, B, n). At most FORMED_BYTES are formed at a time.
    """
    (a, scale), (b, other) = scaled(left.double()), scaled(right.double())
    at_once = max(1, FORMED_BYTES // max(1, 8 * a.shape[-1] * b.shape[-1]))
    pieces = []
    for x, y in zip(a.split(at_once), b.split(at_once), strict=True):
        each = (x.mT @ y).unflatten(1, (blocks, -1))
        pieces.append(torch.linalg.vector_norm(each, dim=(-2, -1)))
    return torch.cat(pieces).mT * scale * other
