"""Temporal order: two symbols among distractors; in which order did they come?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from lightning_modules.batch import Batch
from lightning_modules.tasks.task import TASKS, Task, Tokens, at_least

DISTRACTORS = 4


@dataclass(frozen=True)
class TemporalOrder(Task):
    """X or Y in the first and in the middle fifth of the sequence: XX, XY, YX or YY is asked at the end."""

    pattern: ClassVar[str] = "answer"
    length: int = 100

    def __post_init__(self) -> None:
        at_least("length", self.length, 5)

    @property
    def inputs(self) -> Tokens:
        """Distractors, X and Y."""
        return Tokens(DISTRACTORS + 2)

    @property
    def outputs(self) -> Tokens:
        """Four orders."""
        return Tokens(4)

    @property
    def chance(self) -> float:
        """ln 4."""
        return math.log(4)

    @property
    def solved(self) -> float:
        """An order is as good as always right."""
        return 0.05

    def draw(self, generator: Generator, size: int) -> Batch:
        """(T, B) and (B,)."""
        inputs = torch.randint(DISTRACTORS, (self.length, size), generator=generator)
        symbols = torch.randint(2, (2, size), generator=generator)
        fifth = self.length // 5
        sequences = torch.arange(size)
        for start, symbol in zip((0, 2 * fifth), symbols, strict=True):
            place = start + torch.randint(fifth, (size,), generator=generator)
            inputs[place, sequences] = DISTRACTORS + symbol
        return Batch(inputs, 2 * symbols[0] + symbols[1])


TASKS.add("temporal_order", TemporalOrder)
