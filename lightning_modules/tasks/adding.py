"""Adding: two of T numbers are marked; their sum is asked at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from lightning_modules.batch import Batch
from lightning_modules.tasks.task import TASKS, Task, Vectors, at_least


@dataclass(frozen=True)
class Adding(Task):
    """Numbers uniform in (0, 1); one mark in each half of the sequence."""

    pattern: ClassVar[str] = "answer"
    length: int = 200

    def __post_init__(self) -> None:
        at_least("length", self.length, 2)

    @property
    def inputs(self) -> Vectors:
        """A number and its mark."""
        return Vectors(2)

    @property
    def outputs(self) -> Vectors:
        """The sum."""
        return Vectors(1)

    @property
    def chance(self) -> float:
        """Variance of the sum of two uniform numbers, 1/6: always saying 1."""
        return 1 / 6

    @property
    def solved(self) -> float:
        """A root mean squared error of 0.1."""
        return 0.01

    def draw(self, generator: Generator, size: int) -> Batch:
        """(T, B, 2) and (B, 1)."""
        numbers = torch.rand(self.length, size, generator=generator)
        marks = torch.zeros(self.length, size)
        half = self.length // 2
        sequences = torch.arange(size)
        marks[torch.randint(half, (size,), generator=generator), sequences] = 1.0
        later = half + torch.randint(self.length - half, (size,), generator=generator)
        marks[later, sequences] = 1.0
        return Batch(torch.stack([numbers, marks], -1), (numbers * marks).sum(0)[:, None])


TASKS.add("adding", Adding)
