"""A sentence whose last word is decided by one at its beginning, with a distance to choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from lightning_modules.batch import Batch
from lightning_modules.tasks.task import TASKS, Task, Tokens, at_least

FRUITS = ("banana", "apple", "cherry", "melon")
OPENING = ("Jane", "packed", "a")
FILLERS = (
    "then", "she", "walked", "to", "the", "station", "and", "talked", "with", "friends", "for", "hours",
)  # fmt: skip
CLOSING = ("at", "noon", "she", "ate", "her")
VOCABULARY = tuple(sorted({*FRUITS, *OPENING, *FILLERS, *CLOSING}))


@dataclass(frozen=True)
class Banana(Task):
    """'Jane packed a banana ... at noon she ate her' - what? `distance` steps lie between the fruit and the answer."""

    pattern: ClassVar[str] = "answer"
    distance: int = 60

    def __post_init__(self) -> None:
        at_least("distance", self.distance, len(CLOSING))

    @property
    def inputs(self) -> Tokens:
        """One id a word."""
        return Tokens(len(VOCABULARY))

    @property
    def outputs(self) -> Tokens:
        """One of the fruits."""
        return Tokens(len(FRUITS))

    @property
    def chance(self) -> float:
        """ln of how many fruits there are."""
        return math.log(len(FRUITS))

    @property
    def solved(self) -> float:
        """The fruit is as good as always right."""
        return 0.05

    def draw(self, generator: Generator, size: int) -> Batch:
        """T = 4 + distance words, the filler words drawn at random."""
        fruit = torch.randint(len(FRUITS), (size,), generator=generator)
        filling = torch.randint(
            len(FILLERS), (self.distance - len(CLOSING), size), generator=generator
        )
        parts = [
            _ids(OPENING)[:, None].expand(-1, size),
            _ids(FRUITS)[fruit][None],
            _ids(FILLERS)[filling],
            _ids(CLOSING)[:, None].expand(-1, size),
        ]
        return Batch(torch.cat(parts), fruit)


def sentence(tokens: Sequence[int]) -> str:
    """Token ids to words."""
    return " ".join(VOCABULARY[token] for token in tokens)


def _ids(words: Sequence[str]) -> torch.Tensor:
    return torch.tensor([VOCABULARY.index(word) for word in words])


TASKS.add("banana", Banana)
