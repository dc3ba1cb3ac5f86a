"""A chaotic series to forecast: Lorenz's three equations, seen through x alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lightning_modules.batch import Batch
from lightning_modules.tasks.task import TASKS, Task, Vectors, at_least

SIGMA, RHO, BETA = 10.0, 28.0, 8 / 3
STEP = 0.02
SPREAD = 7.93
"""Standard deviation of x on the attractor."""
WARM_UP = 500
"""Steps from the starting point to the attractor."""
STEPS, TRAJECTORIES = 1000, 64
"""Length and number of the trajectories that windows are cut from."""


@dataclass(frozen=True)
class Lorenz(Task):
    """x at every step, x `ahead` steps later asked: y and z have to be inferred from the past."""

    pattern: ClassVar[str] = "tagging"
    length: int = 100
    ahead: int = 5

    def __post_init__(self) -> None:
        at_least("length", self.length, 2)
        at_least("ahead", self.ahead, 1)

    @property
    def inputs(self) -> Vectors:
        """x, in standard deviations."""
        return Vectors(1)

    @property
    def outputs(self) -> Vectors:
        """x later on."""
        return Vectors(1)

    @property
    def chance(self) -> float:
        """The variance: always saying the mean."""
        return 1.0

    @property
    def solved(self) -> float:
        """A tenth of a standard deviation, the first steps of a sequence (which have no past) included."""
        return 0.03

    def batch(self, split: str, index: int, size: int, seed: int) -> Batch:
        """Windows of long trajectories; the held-out ones start elsewhere."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        return self._windows(_trajectories(split), generator, size)

    def draw(self, generator: Generator, size: int) -> Batch:
        """Windows of the trajectories that are trained on."""
        return self._windows(_trajectories("train"), generator, size)

    def _windows(self, series: Tensor, generator: Generator, size: int) -> Batch:
        room = series.shape[0] - self.length - self.ahead + 1
        at_least(f"{STEPS} steps of trajectory less length and ahead", room, 1)
        start = torch.randint(room, (size,), generator=generator)
        which = torch.randint(series.shape[1], (size,), generator=generator)
        time = torch.arange(self.length + self.ahead)[:, None] + start[None]
        x = series[time, which[None]][..., None]
        return Batch(x[: self.length], x[self.ahead :])


@lru_cache
def _trajectories(split: str) -> Tensor:
    """x of many trajectories, (STEPS, TRAJECTORIES), in standard deviations."""
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)
    middle = torch.tensor([0.0, 0.0, 25.0], dtype=torch.float64)
    point = middle + torch.randn(TRAJECTORIES, 3, generator=generator, dtype=torch.float64)
    series = []
    for step in range(WARM_UP + STEPS):
        point = _advance(point)
        if step >= WARM_UP:
            series.append(point[:, 0])
    return (torch.stack(series) / SPREAD).float()


def _velocity(point: Tensor) -> Tensor:
    x, y, z = point.unbind(-1)
    return torch.stack([SIGMA * (y - x), x * (RHO - z) - y, x * y - BETA * z], -1)


def _advance(point: Tensor) -> Tensor:
    """One step of Runge and Kutta."""
    k1 = _velocity(point)
    k2 = _velocity(point + STEP / 2 * k1)
    k3 = _velocity(point + STEP / 2 * k2)
    k4 = _velocity(point + STEP * k3)
    return point + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


TASKS.add("lorenz", Lorenz)
