"""Kernels whose gradients are right: torch's layers, a minGRU loop, and a parallel scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

INPUTS, UNITS = 3, 4


class MinGRU(nn.Module):
    """h_t = (1 - z_t) h_{t-1} + z_t g_t by a loop over time; inputs (B, T, I), state (B, H)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(INPUTS, UNITS)
        self.candidate = nn.Linear(INPUTS, UNITS)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        z, g = torch.sigmoid(self.gate(x)), self.candidate(x)
        outputs = []
        for t in range(x.shape[1]):
            h = (1 - z[:, t]) * h + z[:, t] * g[:, t]
            outputs.append(h)
        return torch.stack(outputs, 1), h


def parallel_scan(inputs: tuple[Tensor, Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t in log2(T) doubling steps; inputs (a, b) of (T, B, H)."""
    a, b = inputs
    a = torch.sigmoid(a)
    b = torch.cat([b[:1] + a[:1] * h, b[1:]])
    shift = 1
    while shift < len(b):
        b = torch.cat([b[:shift], b[shift:] + a[shift:] * b[:-shift]])
        a = torch.cat([a[:shift], a[shift:] * a[:-shift]])
        shift *= 2
    return b, b[-1]


def arguments(name: str, steps: int, batch: int = 2) -> tuple[Callable[..., Any], Any, Any]:
    """A fresh kernel with random inputs and state."""
    state = torch.randn(1, batch, UNITS)
    x = torch.randn(steps, batch, INPUTS)
    if name == "lstm":
        return nn.LSTM(INPUTS, UNITS), x, (state, torch.randn(1, batch, UNITS))
    if name == "mingru":
        return MinGRU(), torch.randn(batch, steps, INPUTS), torch.randn(batch, UNITS)
    if name == "scan":
        gates = torch.randn(steps, batch, UNITS), torch.randn(steps, batch, UNITS)
        return parallel_scan, gates, torch.randn(batch, UNITS)
    return {"rnn": nn.RNN, "gru": nn.GRU}[name](INPUTS, UNITS), x, state


NAMES = ("rnn", "lstm", "gru", "mingru", "scan")
