"""Nets of known memory: the state of a relu RNN holds exactly the last `held` inputs, and a linear head reads one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORED = -100
SYMBOLS = 2
Batch = dict[str, Tensor]


class ShiftRegister(nn.Module):
    """h_t holds x_t, x_{t-1}, .. of the last `held` steps; the head reads lag `read` (None: no lag).

    Two more units are always 0, and the head reads them too: there a skip can write what it knows.
    """

    def __init__(self, held: int, read: int | None = None, scale: float = 12.0) -> None:
        super().__init__()
        size, held_units = SYMBOLS * held + SYMBOLS, SYMBOLS * held
        self.rnn = nn.RNN(SYMBOLS, size, nonlinearity="relu", batch_first=True, bias=False)
        self.head = nn.Linear(size, SYMBOLS)
        with torch.no_grad():
            self.rnn.weight_ih_l0.copy_(torch.eye(size, SYMBOLS))
            shift = torch.diag(torch.ones(size - SYMBOLS), -SYMBOLS)
            shift[held_units:] = 0
            self.rnn.weight_hh_l0.copy_(shift)
            self.head.weight.zero_()
            self.head.bias.zero_()
            self.head.weight[:, held_units:] = 4 * torch.eye(SYMBOLS)
            if read is not None:
                self.head.weight[:, SYMBOLS * read : SYMBOLS * (read + 1)] = scale * torch.eye(2)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.rnn(x)[0]
        logits: Tensor = self.head(states)
        return logits


def copy_batches(lag: int, count: int = 8, length: int = 14, sequences: int = 32) -> list[Batch]:
    """The target at each step is the symbol `lag` steps before."""
    generator = torch.Generator().manual_seed(lag)
    found = []
    for _ in range(count):
        symbols = torch.randint(0, SYMBOLS, (sequences, length), generator=generator)
        target = torch.full_like(symbols, IGNORED)
        target[:, lag:] = symbols[:, : length - lag]
        found.append({"x": functional.one_hot(symbols, SYMBOLS).float(), "y": target})
    return found


def noise_batches(count: int = 8, length: int = 14, sequences: int = 32) -> list[Batch]:
    """The target has nothing to do with the inputs."""
    generator = torch.Generator().manual_seed(99)
    found = copy_batches(1, count, length, sequences)
    for batch in found:
        batch["y"] = torch.randint(0, SYMBOLS, batch["y"].shape, generator=generator)
    return found


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Mean over all steps that have a target."""
    logits = model(batch["x"])
    return functional.cross_entropy(
        logits.flatten(0, 1), batch["y"].flatten(), ignore_index=IGNORED
    )
