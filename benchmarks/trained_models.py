"""Recurrent models with a head and a loss, three tasks with memories of different lengths, and their training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rnndiag
from rnndiag.engine.layer_run import LayerRun

KERNELS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "elman_tanh": nn.RNN}
CLASSES = 10


class Model(nn.Module):
    """A recurrent layer and a linear head with a loss at every step, or at the end."""

    def __init__(self, kind: str, inputs: int, hidden: int, every_step: bool = True) -> None:
        super().__init__()
        self.kind, self.every_step = kind, every_step
        self.rnn = KERNELS[kind](inputs, hidden)
        self.head = nn.Linear(hidden, CLASSES)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """outputs (T, B, H), targets (T, B)."""
        if self.every_step:
            return cross_entropy(self.head(outputs).flatten(0, 1), targets.flatten())
        return cross_entropy(self.head(outputs[-1]), targets[-1])

    def training_step(self, x: Tensor, targets: Tensor) -> None:
        """Forward and backward."""
        self.zero_grad()
        self.loss(self.rnn(x)[0], targets).backward()

    def layer_run(self, x: Tensor, targets: Tensor) -> LayerRun:
        """The layer run of one step, as it is recorded."""
        with rnndiag.probe(self) as watch:
            self.training_step(x, targets)
        return watch.layer_runs[0]


def batch(steps: int, size: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random inputs and targets."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, size, inputs, generator=draw)
    return x, torch.randint(0, CLASSES, (steps, size), generator=draw)


def delayed_copy(T: int, B: int, delay: int, seed: int) -> tuple[Tensor, Tensor]:
    """Symbols in, the same symbols `delay` steps later out."""
    draw = torch.Generator().manual_seed(seed)
    symbols = torch.randint(0, CLASSES, (T, B), generator=draw)
    targets = torch.cat([torch.zeros(delay, B, dtype=torch.long), symbols[: T - delay]])
    return nn.functional.one_hot(symbols, 16).float(), targets


def running_count(T: int, B: int, period: int, seed: int) -> tuple[Tensor, Tensor]:
    """How many marks so far, modulo `period`."""
    draw = torch.Generator().manual_seed(seed)
    marks = (torch.rand(T, B, generator=draw) < 0.15).long()
    x = torch.randn(T, B, 16, generator=draw) * 0.1
    x[..., 0] = marks.float()
    return x, marks.cumsum(0) % period


def last_symbols(T: int, B: int, reset: float, seed: int) -> tuple[Tensor, Tensor]:
    """The symbol that stood at the last mark."""
    draw = torch.Generator().manual_seed(seed)
    symbols = torch.randint(0, CLASSES, (T, B), generator=draw)
    marks = torch.rand(T, B, generator=draw) < reset
    x = nn.functional.one_hot(symbols, 16).float()
    x[..., 15] = marks.float()
    held = torch.zeros(B, dtype=torch.long)
    targets = []
    for symbol, mark in zip(symbols, marks, strict=True):
        held = torch.where(mark, symbol, held)
        targets.append(held)
    return x, torch.stack(targets)


TASKS: dict[str, tuple[str, Callable[[int], tuple[Tensor, Tensor]]]] = {
    "lstm, last marked symbol": ("lstm", lambda seed: last_symbols(200, 32, 0.04, seed)),
    "gru, count modulo 5": ("gru", lambda seed: running_count(200, 32, 5, seed)),
    "tanh, copy after 6 steps": ("elman_tanh", lambda seed: delayed_copy(200, 32, 6, seed)),
}


def training(name: str, seed: int, looks: tuple[int, ...]) -> Iterator[tuple[int, Model]]:
    """A model in training, handed out after each number of steps in `looks`, ascending.

    It trains on one thread whatever is timed afterwards: with more, sums are taken in another order and it would be
    another model.
    """
    kind, make = TASKS[name]
    threads = torch.get_num_threads()
    torch.manual_seed(seed)
    model = Model(kind, 16, 128)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(looks[-1]):
        torch.set_num_threads(1)
        model.training_step(*make(1000 * seed + step))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch.set_num_threads(threads)
        if step + 1 in looks:
            yield step + 1, model
