"""What a task is: data from a seed, a pattern, a loss, its chance level and the loss of a solved run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from lightning_modules.batch import IGNORED, Batch
from lightning_modules.registry import Registry
from rnndiag.errors import BadArgument


@dataclass(frozen=True)
class Tokens:
    """Token ids below `count`."""

    count: int


@dataclass(frozen=True)
class Vectors:
    """`size` numbers a step."""

    size: int


@dataclass(frozen=True)
class Pictures:
    """One picture of side x side, before the sequence."""

    side: int


class Task(ABC):
    """One task. Subclasses are frozen dataclasses whose fields are the task's options."""

    pattern: ClassVar[str]
    """The pattern that this task is: tagging, answer, caption, translation."""

    @property
    @abstractmethod
    def inputs(self) -> Tokens | Vectors | Pictures:
        """What comes in."""

    @property
    @abstractmethod
    def outputs(self) -> Tokens | Vectors:
        """What is predicted: a choice among tokens (cross-entropy) or numbers (mean squared error)."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """The loss of the best answer that looks at no input."""

    @property
    @abstractmethod
    def solved(self) -> float:
        """A run whose loss is at or below this has learnt the task."""

    @abstractmethod
    def draw(self, generator: Generator, size: int) -> Batch:
        """`size` fresh sequences."""

    def batch(self, split: str, index: int, size: int, seed: int) -> Batch:
        """Minibatch number `index` of a split ("train" or "held-out"): the same for the same arguments."""
        generator = torch.Generator().manual_seed(
            (seed * 1_000_003 + index) * 2 + (split != "train")
        )
        return self.draw(generator, size)

    @property
    def classifies(self) -> bool:
        """Whether the predictions are logits."""
        return isinstance(self.outputs, Tokens)

    @property
    def output_size(self) -> int:
        """Size of a prediction."""
        return self.outputs.count if isinstance(self.outputs, Tokens) else self.outputs.size

    @property
    def metric(self) -> str:
        """Name of the metric beside the loss."""
        return "accuracy" if self.classifies else "rmse"

    @property
    def chance_metric(self) -> float:
        """The metric of the best answer that looks at no input."""
        return 1.0 / self.output_size if self.classifies else math.sqrt(self.chance)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean over everything that is asked."""
        if self.classifies:
            return F.cross_entropy(
                predictions.flatten(0, -2), targets.flatten(), ignore_index=IGNORED
            )
        return F.mse_loss(predictions, targets)

    def score(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The metric: share of right tokens, or root mean squared error."""
        if self.classifies:
            asked = targets != IGNORED
            return (predictions.argmax(-1) == targets)[asked].float().mean()
        return F.mse_loss(predictions, targets).sqrt()


class Writing(Task):
    """A task over characters, of which a trained program can write some more."""

    writes: ClassVar[int] = 1_000_000
    """How many characters there are to write at most."""

    @property
    @abstractmethod
    def prime(self) -> str:
        """What the sample starts from."""

    @property
    @abstractmethod
    def alphabet(self) -> Sequence[str]:
        """Character of every token id."""

    def encode(self, text: str) -> list[int]:
        """Characters to token ids."""
        return [list(self.alphabet).index(character) for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids to characters."""
        return "".join(self.alphabet[token] for token in tokens)

    @abstractmethod
    def held_out(self) -> str:
        """Text that was not trained on, or all of it where there is no other."""


TASKS: Registry[Callable[..., Task]] = Registry("task", "lightning_modules.tasks")


def at_least(name: str, value: int, least: int) -> None:
    """Refuse an option that leaves no task."""
    if value < least:
        raise BadArgument(f"{name} is {value}.", f"Take at least {least}.")
