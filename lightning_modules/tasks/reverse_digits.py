"""Reversing digits: read them all, then say them backwards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from lightning_modules.batch import IGNORED, Batch
from lightning_modules.tasks.task import TASKS, Task, Tokens, at_least

DIGITS = 10


@dataclass(frozen=True)
class ReverseDigits(Task):
    """Between half of `length` and `length` digits, drawn at random."""

    pattern: ClassVar[str] = "translation"
    length: int = 10

    def __post_init__(self) -> None:
        at_least("length", self.length, 2)

    @property
    def inputs(self) -> Tokens:
        """Ten digits."""
        return Tokens(DIGITS)

    @property
    def outputs(self) -> Tokens:
        """Ten digits."""
        return Tokens(DIGITS)

    @property
    def chance(self) -> float:
        """ln 10."""
        return math.log(DIGITS)

    @property
    def solved(self) -> float:
        """Nineteen of twenty nats."""
        return 0.05 * self.chance

    def draw(self, generator: Generator, size: int) -> Batch:
        """(T, B) digits, and each sequence turned round within its own length."""
        digits = torch.randint(DIGITS, (self.length, size), generator=generator)
        lengths = torch.randint(
            (self.length + 1) // 2, self.length + 1, (size,), generator=generator
        )
        time = torch.arange(self.length)[:, None]
        beyond = time >= lengths[None]
        back = digits.gather(0, (lengths[None] - 1 - time).clamp(min=0))
        return Batch(digits.masked_fill(beyond, 0), back.masked_fill(beyond, IGNORED), lengths)


TASKS.add("reverse_digits", ReverseDigits)
