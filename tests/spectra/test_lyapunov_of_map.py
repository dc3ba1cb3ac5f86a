"""Maps and flows whose exponents are known, run through the generic cell."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import rnndiag
from rnndiag.errors import BadArgument


def henon(x: Tensor) -> Tensor:
    return torch.stack([1 - 1.4 * x[..., 0] ** 2 + x[..., 1], 0.3 * x[..., 0]], -1)


def lorenz(x: Tensor) -> Tensor:
    a, b, c = x.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def runge_kutta(x: Tensor, dt: float = 0.01) -> Tensor:
    first = lorenz(x)
    second = lorenz(x + dt / 2 * first)
    third = lorenz(x + dt / 2 * second)
    last = lorenz(x + dt * third)
    return x + dt / 6 * (first + 2 * second + 2 * third + last)


def test_the_logistic_map_doubles_each_step() -> None:
    """4x(1-x): λ = ln 2."""
    draw = torch.Generator().manual_seed(0)
    starts = torch.rand(64, 1, dtype=torch.float64, generator=draw)
    found = rnndiag.lyapunov_of_map(lambda x: 4 * x * (1 - x), starts, steps=500)
    assert float(found.standard_error) < 5e-3
    assert abs(float(found.exponents) - math.log(2)) < 3 * float(found.standard_error)
    assert found.kaplan_yorke == 1.0


def test_one_number_is_a_state_too() -> None:
    found = rnndiag.lyapunov_of_map(lambda x: 4 * x * (1 - x), 0.3, steps=2000, blocks=20)
    assert found.se_sequences.isnan().all()
    assert abs(float(found.exponents) - math.log(2)) < 3 * float(found.standard_error)


def test_a_tent_map_with_branches() -> None:
    """Slopes 1/p and 1/(1-p) are met with probability p and 1-p: λ is their entropy. `if` rules vmap out."""
    p = 0.4

    def tent(x: Tensor) -> Tensor:
        return x / p if x < p else (1 - x) / (1 - p)

    found = rnndiag.lyapunov_of_map(tent, torch.tensor([0.3]), steps=3000)
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert abs(float(found.exponents) - entropy) < 3 * float(found.standard_error)
    assert float(found.standard_error) < 0.01


def test_henon() -> None:
    """(1.4, 0.3): λ_1 = 0.4192 (published), and the sum is ln 0.3 exactly: the map's determinant is -0.3 everywhere."""
    draw = torch.Generator().manual_seed(1)
    starts = 0.1 * torch.rand(16, 2, dtype=torch.float64, generator=draw)
    found = rnndiag.lyapunov_of_map(henon, starts, steps=1500)
    assert abs(float(found.exponents[0]) - 0.4192) < 3 * float(found.standard_error[0])
    assert float(found.standard_error[0]) < 0.01
    assert float(found.exponents.sum()) == pytest.approx(math.log(0.3), abs=1e-10)
    assert found.log_det_residual < 1e-10
    assert found.kaplan_yorke == pytest.approx(1.258, abs=0.01)


def test_henon_from_a_single_state_and_with_one_exponent() -> None:
    both = rnndiag.lyapunov_of_map(henon, torch.tensor([0.1, 0.1]), steps=800)
    assert float(both.exponents.sum()) == pytest.approx(math.log(0.3), abs=1e-10)
    each = rnndiag.lyapunov_of_map(henon, torch.tensor([0.1, 0.1]), steps=800, interval=1)
    assert float(each.exponents.sum()) == pytest.approx(math.log(0.3), abs=1e-14)
    one = rnndiag.lyapunov_of_map(henon, torch.tensor([0.1, 0.1]), steps=800, k=1)
    assert float(one.exponents) == pytest.approx(float(both.exponents[0]), abs=1e-9)
    assert math.isnan(one.kaplan_yorke), "one growing direction does not tell the dimension"


def test_the_lorenz_flow_through_runge_kutta() -> None:
    """σ, ρ, β = 10, 28, 8/3: 0.9056, 0, -14.5723 per unit of time (published); the sum is -(σ + 1 + β)."""
    starts = torch.tensor(
        [[1.0, 1.0, 20.0], [4.0, 6.0, 22.0], [-5.0, -3.0, 18.0], [2.0, 3.0, 25.0]]
    )
    found = rnndiag.lyapunov_of_map(runge_kutta, starts, steps=5000, warmup=500, dt=0.01)
    published = torch.tensor([0.9056, 0.0, -14.5723], dtype=torch.float64)
    assert ((found.exponents - published).abs() < 3 * found.standard_error + 1e-3).all()
    assert found.standard_error.max() < 0.05
    assert float(found.exponents.sum()) == pytest.approx(-(10 + 1 + 8 / 3), abs=1e-3)
    assert found.kaplan_yorke == pytest.approx(2.062, abs=5e-3)


def test_a_step_that_mixes_its_rows_is_refused() -> None:
    def wrong(x: Tensor) -> Tensor:
        return torch.stack([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])

    vector = rnndiag.lyapunov_of_map(wrong, torch.tensor([0.1, 0.1]), steps=50)
    assert float(vector.exponents.sum()) == pytest.approx(math.log(0.3), abs=1e-12)
    with pytest.raises(BadArgument, match="another value in a batch than alone"):
        rnndiag.lyapunov_of_map(lambda x: 0.5 * x + x.mean(), torch.rand(3, 2), steps=5)


def test_what_makes_no_trajectory_is_refused() -> None:
    with pytest.raises(BadArgument, match=r"gives \(3,\) for an x of shape \(2,\)"):
        rnndiag.lyapunov_of_map(lambda x: torch.ones(3), torch.rand(2), steps=5)
    with pytest.raises(BadArgument, match="left the finite numbers after step 1"):
        rnndiag.lyapunov_of_map(lambda x: 1 / x - 1 / x, torch.zeros(1), steps=5)
    with pytest.raises(BadArgument, match="steps = 0"):
        rnndiag.lyapunov_of_map(henon, torch.rand(2), steps=0)
    with pytest.raises(BadArgument, match=r"shape \(0, 2\) make no trajectory"):
        rnndiag.lyapunov_of_map(henon, torch.zeros(0, 2), steps=5)
