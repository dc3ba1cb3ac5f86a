"""Copy memory: some symbols, a long blank, a signal, and the same symbols asked back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from lightning_modules.batch import IGNORED, Batch
from lightning_modules.tasks.task import TASKS, Task, Tokens, at_least


@dataclass(frozen=True)
class CopyMemory(Task):
    """`symbols` drawn from an alphabet, `delay` blanks, one signal; the loss is on the symbols asked back alone."""

    pattern: ClassVar[str] = "tagging"
    symbols: int = 10
    alphabet: int = 8
    delay: int = 100

    def __post_init__(self) -> None:
        at_least("symbols", self.symbols, 1)
        at_least("alphabet", self.alphabet, 2)
        at_least("delay", self.delay, 0)

    @property
    def inputs(self) -> Tokens:
        """The alphabet, a blank and the signal."""
        return Tokens(self.alphabet + 2)

    @property
    def outputs(self) -> Tokens:
        """The alphabet."""
        return Tokens(self.alphabet)

    @property
    def chance(self) -> float:
        """ln of the alphabet's size."""
        return math.log(self.alphabet)

    @property
    def solved(self) -> float:
        """Nineteen of twenty nats are remembered."""
        return 0.05 * self.chance

    def draw(self, generator: Generator, size: int) -> Batch:
        """T = 2 symbols + delay; the signal comes in at the step at which the first symbol is asked back."""
        blank, signal = self.alphabet, self.alphabet + 1
        drawn = torch.randint(self.alphabet, (self.symbols, size), generator=generator)
        steps = 2 * self.symbols + self.delay
        inputs = torch.full((steps, size), blank)
        inputs[: self.symbols] = drawn
        inputs[self.symbols + self.delay] = signal
        targets = torch.full((steps, size), IGNORED)
        targets[self.symbols + self.delay :] = drawn
        return Batch(inputs, targets)


TASKS.add("copy_memory", CopyMemory)
