"""A character language model on text that every Python installation carries."""

from __future__ import annotations

import codecs
import importlib.util
import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Generator

from lightning_modules.batch import Batch
from lightning_modules.tasks.task import TASKS, Tokens, Writing, at_least
from rnndiag.errors import BadArgument

HELD_OUT = 0.1
"""The share at the end of the text that is never trained on."""


def _zen() -> str:
    """The text of `import this`, without printing it."""
    found = importlib.util.find_spec("this")
    if found is None or found.origin is None:
        raise BadArgument("This Python has no module 'this'.", "Take the text 'topics'.")
    source = Path(found.origin).read_text(encoding="utf-8")
    return codecs.decode(source.split('"""')[1], "rot13")


def _topics() -> str:
    """The language reference behind `help()`."""
    try:
        from pydoc_data.topics import topics
    except ImportError as missing:
        raise BadArgument(
            "This Python was installed without pydoc_data.topics.", "Take the text 'this'."
        ) from missing
    return "\n\n".join(str(topics[name]) for name in sorted(topics))


TEXTS = {"this": _zen, "topics": _topics}


@lru_cache
def read(text: str, characters: int) -> str:
    """The first `characters` of a text, without what is not plain ASCII."""
    if text not in TEXTS:
        raise BadArgument(f"There is no text {text!r}.", f"Known are: {', '.join(TEXTS)}.")
    plain = TEXTS[text]().encode("ascii", "ignore").decode()
    return " ".join(line if line else "\n" for line in plain.split("\n"))[:characters]


@dataclass(frozen=True)
class Text(Writing):
    """The next character at every step. `stream`: batch after batch goes on where the last one stopped, so that a
    state can be carried; otherwise every sequence starts anywhere."""

    pattern: ClassVar[str] = "tagging"
    text: str = "topics"
    characters: int = 200_000
    length: int = 100
    stream: bool = False

    def __post_init__(self) -> None:
        at_least("length", self.length, 2)
        if len(self.trained()) < 2 * self.length:
            raise BadArgument(
                f"The text has {len(self.trained())} characters to train on, a sequence {self.length}.",
                "Take shorter sequences or more of the text.",
            )

    @property
    def alphabet(self) -> tuple[str, ...]:
        """Every character of the text."""
        return _alphabet(self.text, self.characters)

    @property
    def inputs(self) -> Tokens:
        """One id a character."""
        return Tokens(len(self.alphabet))

    @property
    def outputs(self) -> Tokens:
        """One id a character."""
        return Tokens(len(self.alphabet))

    @property
    def chance(self) -> float:
        """Entropy of single characters: what their frequencies alone give."""
        return _entropy(self.trained(), 0)

    @property
    def solved(self) -> float:
        """Entropy of a character given the one before it: below it only memory leads."""
        return _entropy(self.trained(), 1)

    @property
    def chance_metric(self) -> float:
        """Always saying the most frequent character."""
        return Counter(self.trained()).most_common(1)[0][1] / len(self.trained())

    @property
    def prime(self) -> str:
        """A character that starts a sentence."""
        return "T" if "T" in self.alphabet else self.alphabet[0]

    def trained(self) -> str:
        """The part of the text that is trained on."""
        text = read(self.text, self.characters)
        return text[: int(len(text) * (1 - HELD_OUT))]

    def held_out(self) -> str:
        """The end of the text."""
        return read(self.text, self.characters)[len(self.trained()) :]

    def batch(self, split: str, index: int, size: int, seed: int) -> Batch:
        """With `stream`, sequence b of batch i + 1 follows sequence b of batch i."""
        if not self.stream or split != "train":
            ids = self._ids(split)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
            return self._cut(
                ids, torch.randint(len(ids) - self.length, (size,), generator=generator)
            )
        ids = self._ids(split)
        step = (len(ids) - 1) // size
        if step < self.length:
            raise BadArgument(
                f"{size} streams of a text of {len(ids)} characters are shorter than {self.length} steps.",
                "Take a smaller batch, shorter sequences or more of the text.",
            )
        starts = torch.arange(size) * step + (index * self.length) % (step - self.length + 1)
        return self._cut(ids, starts)

    def draw(self, generator: Generator, size: int) -> Batch:
        """Sequences that start anywhere in the trained part."""
        ids = self._ids("train")
        return self._cut(ids, torch.randint(len(ids) - self.length, (size,), generator=generator))

    def _ids(self, split: str) -> torch.Tensor:
        return _token_ids(self.text, self.characters, split == "train")

    def _cut(self, ids: torch.Tensor, starts: torch.Tensor) -> Batch:
        window = ids[starts[None] + torch.arange(self.length + 1)[:, None]]
        return Batch(window[:-1], window[1:])


@lru_cache
def _alphabet(text: str, characters: int) -> tuple[str, ...]:
    return tuple(sorted(set(read(text, characters))))


@lru_cache
def _token_ids(text: str, characters: int, train: bool) -> torch.Tensor:
    task = Text(text, characters, length=2)
    index = {character: number for number, character in enumerate(task.alphabet)}
    part = task.trained() if train else task.held_out()
    return torch.tensor([index[character] for character in part])


@lru_cache
def _entropy(text: str, order: int) -> float:
    """Nats a character, given the `order` characters before it, by counting."""
    pairs = Counter(text[start : start + order + 1] for start in range(len(text) - order))
    contexts = Counter(text[start : start + order] for start in range(len(text) - order))
    total = sum(pairs.values())
    return -sum(
        count / total * math.log(count / contexts[pair[:order]]) for pair, count in pairs.items()
    )


TASKS.add("text", Text)
