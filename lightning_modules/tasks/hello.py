"""'hello' over the vocabulary h, e, l, o: after the first l comes an l, after the second an o."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from lightning_modules.batch import Batch
from lightning_modules.tasks.task import TASKS, Tokens, Writing

ALPHABET = ("h", "e", "l", "o")
WORD = "hello"


@dataclass(frozen=True)
class Hello(Writing):
    """h, e, l, l in; e, l, l, o out. Without memory the two l's cost (ln 2)/2 a step at least."""

    pattern: ClassVar[str] = "tagging"
    writes: ClassVar[int] = len(WORD) - 1

    @property
    def inputs(self) -> Tokens:
        """Four letters."""
        return Tokens(len(ALPHABET))

    @property
    def outputs(self) -> Tokens:
        """Four letters."""
        return Tokens(len(ALPHABET))

    @property
    def chance(self) -> float:
        """ln 4."""
        return math.log(len(ALPHABET))

    @property
    def solved(self) -> float:
        """Far below what a net without memory can reach, 0.35."""
        return 0.02

    @property
    def prime(self) -> str:
        """The first letter."""
        return "h"

    @property
    def alphabet(self) -> tuple[str, ...]:
        """h, e, l, o."""
        return ALPHABET

    def held_out(self) -> str:
        """The word itself: there is no other."""
        return WORD

    def draw(self, generator: Generator, size: int) -> Batch:
        """The one word, `size` times."""
        tokens = torch.tensor(self.encode(WORD))[:, None].expand(-1, size)
        return Batch(tokens[:-1].contiguous(), tokens[1:].contiguous())


TASKS.add("hello", Hello)
