"""Bracket depth: how many brackets are open, at every step of sequences of different lengths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from lightning_modules.batch import IGNORED, Batch
from lightning_modules.tasks.task import TASKS, Task, Tokens, at_least

OPEN, CLOSE, LETTER = 0, 1, 2


@dataclass(frozen=True)
class Brackets(Task):
    """Brackets and letters; the depth never leaves 0..deepest. Lengths are uniform in half..all of `length`."""

    pattern: ClassVar[str] = "tagging"
    length: int = 60
    deepest: int = 5

    def __post_init__(self) -> None:
        at_least("length", self.length, 2)
        at_least("deepest", self.deepest, 1)

    @property
    def inputs(self) -> Tokens:
        """Open, close, letter."""
        return Tokens(3)

    @property
    def outputs(self) -> Tokens:
        """Depths 0..deepest."""
        return Tokens(self.deepest + 1)

    @property
    def chance(self) -> float:
        """ln of how many depths there are."""
        return math.log(self.deepest + 1)

    @property
    def solved(self) -> float:
        """Depths are as good as always right."""
        return 0.05

    def draw(self, generator: Generator, size: int) -> Batch:
        """A walk between 0 and the deepest; where a bracket would leave it, it turns round."""
        tokens = torch.randint(3, (self.length, size), generator=generator)
        depth = torch.zeros(size, dtype=torch.long)
        depths = []
        for row in tokens.unbind(0):
            row[(row == OPEN) & (depth == self.deepest)] = CLOSE
            row[(row == CLOSE) & (depth == 0)] = OPEN
            depth = depth + (row == OPEN).long() - (row == CLOSE).long()
            depths.append(depth)
        lengths = torch.randint(self.length // 2, self.length + 1, (size,), generator=generator)
        beyond = torch.arange(self.length)[:, None] >= lengths[None]
        targets = torch.stack(depths).masked_fill(beyond, IGNORED)
        return Batch(tokens.masked_fill(beyond, LETTER), targets, lengths)


TASKS.add("brackets", Brackets)
