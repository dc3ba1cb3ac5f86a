"""Bias of this minibatch and systematic bias side by side, on problems whose mean gradient is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from truncation.planted import BIAS, recorded

from rnndiag import lag_sweep
from rnndiag.engine.cells import find_cell
from rnndiag.engine.unroll import unroll
from rnndiag.stats.window import smallest_window, systematic_bias


def test_the_planted_problem_is_what_it_says() -> None:
    """Without noise every number is the closed form."""
    sweep = lag_sweep(recorded(1e9, 0))
    assert float(sweep.window_bias[1]) == pytest.approx(BIAS, rel=1e-6)
    ratio = float(sweep.tail_mean_square[1]) / sweep.gradient_mean_square
    assert math.sqrt(ratio) == pytest.approx(BIAS, rel=1e-6)
    noisy = lag_sweep(recorded(2.0, 0))
    true_size = 16 * math.sqrt(1 + 0.05**2)
    assert noisy.noise == pytest.approx(true_size / 2.0, rel=0.1)


@pytest.mark.parametrize("signal_to_noise", [3.0, 1.0, 0.1])
def test_a_planted_bias_of_five_percent(signal_to_noise: float) -> None:
    """50 recordings: pooled, it is right within its stated error or not resolved; the naive ratio is neither."""
    sweeps = [lag_sweep(recorded(signal_to_noise, seed), chunks=()) for seed in range(50)]
    naive = float(np.mean([float(s.window_bias[1]) for s in sweeps]))
    pooled = systematic_bias(
        np.stack([s.tail_mean_square.numpy() for s in sweeps]),
        np.array([s.gradient_mean_square for s in sweeps]),
    )
    if signal_to_noise < 0.3:
        assert not pooled.resolved
        assert naive > 0.6
        return
    assert pooled.resolved
    assert abs(pooled.square[1] - BIAS**2) < 3 * pooled.square_error[1]
    assert pooled.square_error[1] < 0.005
    noise = 1 / signal_to_noise**2
    expected = math.sqrt((0.05**2 + noise / 2) / (1 + 0.05**2 + noise))
    assert naive == pytest.approx(expected, rel=0.1)
    assert naive > 4 * BIAS


def test_a_longer_window_that_is_worse() -> None:
    """Contributions of alternating sign with known sizes: the window must not stop at a dip that rises again."""
    sizes = [0.95, 0.55, -0.5, 0.02, -0.02, 0.0, 0.0]
    T = len(sizes)
    weights = {
        "weight_ih": torch.zeros(1, 1, dtype=torch.float64),
        "weight_hh": torch.ones(1, 1, dtype=torch.float64),
    }
    x = torch.tensor(sizes[::-1], dtype=torch.float64).view(T, 1, 1)
    direct = torch.zeros(T, 1, 1, dtype=torch.float64)
    direct[-1] = 1
    sweep = lag_sweep(unroll(find_cell("linear"), weights, x, (direct,)))
    expected = [abs(sum(sizes[tau:])) / abs(sum(sizes)) for tau in range(T + 1)]
    assert sweep.window_bias.tolist() == pytest.approx(expected, abs=1e-12)
    assert expected[1] < 0.1 < expected[2]
    assert smallest_window(sweep.window_bias.numpy(), 0.1).steps == 3
    sizes_of_lags = sweep.lag_gradient_norms["weight_ih"].tolist()
    assert sizes_of_lags == pytest.approx([abs(c) for c in sizes], abs=1e-12)
