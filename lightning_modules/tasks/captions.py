"""Pictures of one shape, and a caption: its size, its shape, and where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lightning_modules.batch import Batch
from lightning_modules.tasks.task import TASKS, Pictures, Task, Tokens

SIDE = 16
SIZES = {"small": 2.5, "large": 4.5}
"""Word -> half the shape's width in pixels."""
SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "square": lambda x, y: torch.maximum(x.abs(), y.abs()) <= 1,
    "circle": lambda x, y: x * x + y * y <= 1,
    "cross": lambda x, y: (torch.minimum(x.abs(), y.abs()) <= 0.3) & (x.abs() + y.abs() <= 1.3),
}
"""Word -> which points belong to the shape, in units of half its width."""
PLACES = {"left": -3.0, "right": 3.0}
"""Word -> shift of the shape's middle."""
VERTICAL = {"above": -3.0, "below": 3.0}
GROUPS: tuple[tuple[str, ...], ...] = (tuple(SIZES), tuple(SHAPES), tuple(VERTICAL), tuple(PLACES))
WORDS = tuple(word for group in GROUPS for word in group)


@dataclass(frozen=True)
class Captions(Task):
    """'large circle above left': one word each of size, shape, height and side; pictures carry noise."""

    pattern: ClassVar[str] = "caption"
    noise: float = 0.2

    @property
    def inputs(self) -> Pictures:
        """Grey pictures."""
        return Pictures(SIDE)

    @property
    def outputs(self) -> Tokens:
        """One id a word."""
        return Tokens(len(WORDS))

    @property
    def chance(self) -> float:
        """Knowing the grammar and not the picture."""
        return sum(math.log(len(group)) for group in GROUPS) / len(GROUPS)

    @property
    def chance_metric(self) -> float:
        """Likewise."""
        return sum(1 / len(group) for group in GROUPS) / len(GROUPS)

    @property
    def solved(self) -> float:
        """Words are as good as always right."""
        return 0.05

    def draw(self, generator: Generator, size: int) -> Batch:
        """(B, 1, 16, 16) and (4, B)."""
        chosen = [torch.randint(len(group), (size,), generator=generator) for group in GROUPS]
        axis = torch.arange(SIDE) - (SIDE - 1) / 2
        jitter = torch.rand(2, size, generator=generator) - 0.5
        half = torch.tensor(list(SIZES.values()))[chosen[0]]
        middle_y = torch.tensor(list(VERTICAL.values()))[chosen[2]] + jitter[0]
        middle_x = torch.tensor(list(PLACES.values()))[chosen[3]] + jitter[1]
        y = ((axis[None] - middle_y[:, None]) / half[:, None])[:, :, None]
        x = ((axis[None] - middle_x[:, None]) / half[:, None])[:, None, :]
        drawn = torch.stack([inside(*torch.broadcast_tensors(x, y)) for inside in SHAPES.values()])
        pictures = drawn[chosen[1], torch.arange(size)].float()
        pictures = pictures + self.noise * torch.randn(pictures.shape, generator=generator)
        starts = [WORDS.index(group[0]) for group in GROUPS]
        words = torch.stack([start + pick for start, pick in zip(starts, chosen, strict=True)])
        return Batch(pictures[:, None], words)


TASKS.add("captions", Captions)
