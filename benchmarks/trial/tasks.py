"""Small tasks with a known memory need: what goes in, what is asked, how far back it lies.

Tasks are split in two. Thresholds are chosen on the development tasks alone; the figures that count are those
of the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Asked = Literal["class at end", "class at every step", "value at end", "value at every step"]
IGNORED = -100
Make = Callable[[int, int, Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """`make(n, T, generator)`: inputs (n, T, D) and targets, classes (n,) or (n, T), values (n, K) or (n, T, K)."""

    name: str
    make: Make
    asked: Asked
    outputs: int
    T: int
    needs: int
    """Steps back that an answer depends on; 0: none."""
    steps: int
    """Optimizer steps in which a healthy net learns it."""
    held_out: bool = False
    rate: float = 1e-2

    @property
    def at_end(self) -> bool:
        """Whether one answer is asked, at the last step."""
        return self.asked.endswith("end")

    @property
    def classes(self) -> bool:
        """Whether the loss is a cross-entropy; else a squared error."""
        return self.asked.startswith("class")

    @property
    def inputs(self) -> int:
        """D."""
        return int(self.make(1, max(self.T, 10), Generator().manual_seed(0))[0].shape[-1])


def _one_hot(x: Tensor, classes: int) -> Tensor:
    return F.one_hot(x, classes).float()


def _recall(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """The first symbol, asked at the end."""
    x = torch.randint(4, 8, (n, T), generator=g)
    x[:, 0] = torch.randint(0, 4, (n,), generator=g)
    return _one_hot(x, 8), x[:, 0].clone()


def _copy_lag(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """At every step the symbol five steps ago; before there is one, class 0."""
    x = torch.randint(0, 4, (n, T), generator=g)
    y = torch.zeros_like(x)
    y[:, 5:] = x[:, :-5]
    return _one_hot(x, 4), y


def _xor(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """The exclusive or of this bit and the last one."""
    x = torch.randint(0, 2, (n, T), generator=g)
    y = torch.full((n, T), IGNORED)
    y[:, 2:] = x[:, 2:] ^ x[:, 1:-1]
    return (2.0 * x - 1)[..., None], y


def _autoregressive(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """The next value of an AR(2) process."""
    noise = 0.3 * torch.randn(n, T + 31, generator=g)
    s = torch.zeros(n, T + 31)
    for t in range(2, T + 31):
        s[:, t] = 1.6 * s[:, t - 1] - 0.8 * s[:, t - 2] + noise[:, t]
    s = s[:, 30:, None]
    return s[:, :-1].contiguous(), s[:, 1:].contiguous()


def _local(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """The signs of two inputs of this step: no memory."""
    x = torch.randn(n, T, 4, generator=g)
    return x, (x[..., 0] > 0).long() * 2 + (x[..., 1] > 0).long()


_ALPHABET = " \nabcdefghijklmnopqrstuvwxyz_.(),:='#"


def _text(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """The next character of Python source."""
    import argparse
    import heapq
    import textwrap

    source = "".join(inspect.getsource(module) for module in (textwrap, argparse, heapq)).lower()
    other = len(_ALPHABET) - 1
    codes = torch.tensor([_ALPHABET.find(c) if c in _ALPHABET else other for c in source])
    starts = torch.randint(0, len(codes) - T - 1, (n,), generator=g)
    words = codes[starts[:, None] + torch.arange(T + 1)]
    return _one_hot(words[:, :-1], len(_ALPHABET)), words[:, 1:].contiguous()


def _order(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Two marks among noise, asked at the end which they were and in which order."""
    x = torch.randint(2, 6, (n, T), generator=g)
    first, second = torch.randint(0, 2, (2, n), generator=g)
    rows = torch.arange(n)
    x[rows, torch.randint(1, T // 4, (n,), generator=g)] = first
    x[rows, torch.randint(T // 2, T // 2 + 4, (n,), generator=g)] = second
    return _one_hot(x, 6), first * 2 + second


def _flip_flop(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """At every step the last mark seen; marks are rare."""
    x = torch.randint(0, 3, (n, T), generator=g)
    marked = torch.rand(n, T, generator=g) < 0.08
    marked[:, 0] = True
    last = torch.where(marked, torch.arange(T), 0).cummax(1).values
    return _one_hot(torch.where(marked, x, 3), 4), x.gather(1, last)


def _count(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """The number of ones so far, modulo 3; ones are rare."""
    x = (torch.rand(n, T, generator=g) < 0.15).long()
    return _one_hot(x, 2), x.cumsum(1) % 3


def _adding(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """The sum of two marked values, at the end."""
    value, mark = torch.rand(n, T, generator=g), torch.zeros(n, T)
    rows = torch.arange(n)
    mark[rows, torch.randint(0, T // 2, (n,), generator=g)] = 1
    mark[rows, torch.randint(T // 2, T, (n,), generator=g)] = 1
    return torch.stack([value, mark], -1), ((value * mark).sum(1, keepdim=True) - 1) * 2


def _heavy_tails(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """The sum of the last three inputs, under noise with heavy tails."""
    x, z = torch.randn(n, T, generator=g), torch.randn(n, T, 4, generator=g)
    noise = z[..., 0] / z[..., 1:].pow(2).mean(-1).sqrt()
    y = x.clone()
    y[:, 1:] += x[:, :-1]
    y[:, 2:] += x[:, :-2]
    return x[..., None], (y + 0.3 * noise)[..., None]


def _local_value(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """A function of this step's inputs: no memory."""
    x = torch.randn(n, T, 3, generator=g)
    return x, x[..., :1] * x[..., 1:2] + torch.relu(x[..., 2:])


def _sine(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """The next value of a noisy sine of unknown frequency and phase."""
    frequency = 0.15 + 0.4 * torch.rand(n, 1, generator=g)
    phase = 6.28 * torch.rand(n, 1, generator=g)
    s = torch.sin(frequency * torch.arange(T + 1) + phase) + 0.1 * torch.randn(
        n, T + 1, generator=g
    )
    return s[:, :-1, None].contiguous(), s[:, 1:, None].contiguous()


def _match(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Whether the last symbol is the first one again."""
    x = torch.randint(4, 8, (n, T), generator=g)
    first, other = torch.randint(0, 4, (2, n), generator=g)
    same = torch.rand(n, generator=g) < 0.5
    x[:, 0], x[:, -1] = first, torch.where(same, first, other)
    return _one_hot(x, 8), (x[:, 0] == x[:, -1]).long()


def _echo(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """At every step the value three steps ago."""
    x = torch.randn(n, T, generator=g)
    y = torch.zeros_like(x)
    y[:, 3:] = x[:, :-3]
    return x[..., None], y[..., None]


def _keep(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """The first value, asked at the end; noise between."""
    x = torch.rand(n, T, 1, generator=g) * 2 - 1
    return x, x[:, 0].clone()


def _delay(n: int, T: int, g: Generator) -> tuple[Tensor, Tensor]:
    """At every step the bit eight steps ago; before there is one, class 0."""
    x = torch.randint(0, 2, (n, T), generator=g)
    y = torch.zeros_like(x)
    y[:, 8:] = x[:, :-8]
    return (2.0 * x - 1)[..., None], y


_EVERY, _END = "class at every step", "class at end"
_ROWS = (
    Task("recall", _recall, _END, 4, 25, 24, 350, rate=5e-3),
    Task("copy-lag", _copy_lag, _EVERY, 4, 20, 5, 400),
    Task("ar2", _autoregressive, "value at every step", 1, 30, 2, 200),
    Task("local", _local, _EVERY, 4, 20, 0, 250),
    Task("xor", _xor, _EVERY, 2, 20, 1, 300, rate=5e-3),
    Task("text", _text, _EVERY, len(_ALPHABET), 25, 4, 500, rate=5e-3),
    Task("order", _order, _END, 4, 24, 22, 450, held_out=True, rate=5e-3),
    Task("flip-flop", _flip_flop, _EVERY, 3, 30, 12, 250, held_out=True),
    Task("adding", _adding, "value at end", 1, 16, 16, 350, held_out=True),
    Task("echo", _echo, "value at every step", 1, 24, 3, 300, held_out=True),
    Task("local-value", _local_value, "value at every step", 1, 20, 0, 250, held_out=True),
    Task("count", _count, _EVERY, 3, 16, 15, 600, held_out=True, rate=5e-3),
    Task(
        "heavy-tails", _heavy_tails, "value at every step", 1, 20, 2, 400, held_out=True, rate=5e-3
    ),
    Task("sine", _sine, "value at every step", 1, 30, 3, 400, held_out=True, rate=5e-3),
    Task("keep", _keep, "value at end", 1, 40, 39, 450, held_out=True, rate=5e-3),
    Task("delay", _delay, _EVERY, 2, 24, 8, 400, held_out=True),
    Task("match", _match, _END, 2, 18, 17, 800, held_out=True, rate=5e-3),
)
TASKS = {task.name: task for task in _ROWS}
