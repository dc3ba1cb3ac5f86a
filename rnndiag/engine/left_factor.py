"""The left factor of rank-one contributions with what is computed from it once: sizes, sums, Gram products."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class LeftFactor:
    """What several weights with one left factor share: W_ih and b_ih, and W_hh too where the cell is additive."""

    def __init__(self, values: Tensor, blocks: int) -> None:
        self.values, self.blocks = values, blocks

    @cached_property
    def sum(self) -> Tensor:
        total: Tensor = self.values.sum(1)
        return total

    @cached_property
    def norm(self) -> Tensor:
        """The size of every sample at every step, (T, B)."""
        size: Tensor
        if self.values.shape[1] > self.values.shape[2]:
            size = torch.linalg.vector_norm(self.values, dim=-1)
        else:
            size = (
                torch.stack([gram.diagonal(dim1=-2, dim2=-1) for gram in self.gram]).sum(0).sqrt()
            )
        return size

    @cached_property
    def rows(self) -> Tensor:
        """(blocks, T, B, m / blocks)"""
        rows: Tensor = self.values.unflatten(-1, (self.blocks, -1)).movedim(2, 0)
        return rows

    @cached_property
    def gram(self) -> list[Tensor]:
        """Inner products of the samples at each step, by block of rows: (T, B, B) a block."""
        return [block @ block.mT for block in self.rows]

    @cached_property
    def largest(self) -> Tensor:
        """The size of the largest sample of each step, (T,)."""
        size: Tensor = self.norm.amax(1)
        return size
