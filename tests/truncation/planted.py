"""A linear problem whose mean gradient, window bias and noise are known."""

from __future__ import annotations

import math

import torch

from rnndiag import LayerRun
from rnndiag.engine.cells import find_cell
from rnndiag.engine.unroll import unroll

BIAS = 0.05 / math.sqrt(1 + 0.05**2)
"""The planted bias of a window of 1: |E S_1| / |E g|."""


def recorded(signal_to_noise: float, seed: int, B: int = 16, inputs: int = 2048) -> LayerRun:
    """Two steps of h_t = h_{t-1} + U x_t with U = 0 and a loss at the end: g = Σ_b e (x_2 + x_1)^T.

    The mean of x_2 is a unit vector v, that of x_1 is 0.05 w with w at right angles; both carry noise.
    """
    draw = torch.Generator().manual_seed(seed)
    size = math.sqrt(B / 2 / inputs) / signal_to_noise
    x = size * torch.randn(2, B, inputs, dtype=torch.float64, generator=draw)
    x[0, :, 1] += 0.05
    x[1, :, 0] += 1.0
    weights = {
        "weight_ih": torch.zeros(2, inputs, dtype=torch.float64),
        "weight_hh": torch.eye(2, dtype=torch.float64),
    }
    direct = torch.zeros(2, B, 2, dtype=torch.float64)
    direct[1] = torch.tensor([0.6, 0.8], dtype=torch.float64)
    return unroll(find_cell("linear"), weights, x, (direct,))
