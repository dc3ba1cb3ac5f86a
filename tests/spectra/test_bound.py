"""The lectures' bound Π σ(D_j) σ(W_hh) beside what it bounds, and the scalar chain with its n factors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra.hand_made import by_hand, draw_run, linear_run, orthogonal
from torch import Tensor

import rnndiag
from rnndiag.engine.cells import Cell, State, Weights, find_cell
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.unroll import unroll


@settings(max_examples=15)
@given(
    st.sampled_from(["elman_tanh", "elman_relu", "linear"]),
    st.integers(0, 1000),
    st.floats(0.3, 2.0),
)
def test_the_bound_holds_and_is_the_textbooks(cell: str, seed: int, gain: float) -> None:
    run = draw_run(cell, steps=6, batch=2, units=4, gain=gain, seed=seed)
    found = rnndiag.jacobian_products(run, [1, 3, 6], anchors=[0])
    assert found.log_bound is not None
    assert found.log_looseness is not None
    assert not (found.log_bound < found.log_spectral - 1e-9).any()
    h = run.states[0]
    slope = {"elman_tanh": 1 - h**2, "elman_relu": (h > 0).double(), "linear": torch.ones_like(h)}
    for i, lag in enumerate(found.lags):
        for b in range(2):
            factors = [
                float(torch.linalg.matrix_norm(torch.diag(slope[cell][j, b]), 2))
                * float(torch.linalg.matrix_norm(run.weights["weight_hh"], 2))
                for j in range(lag)
            ]
            assert math.exp(found.log_bound[i, 0, b]) == pytest.approx(math.prod(factors))


def test_the_bound_is_tight_for_a_scaled_orthogonal_matrix_and_loose_for_a_shear() -> None:
    tight = rnndiag.jacobian_products(linear_run(0.9 * orthogonal(4), steps=8), [8])
    assert tight.log_looseness is not None
    assert tight.log_looseness.abs().max() < 1e-12
    shear = torch.tensor([[0.9, 5.0], [0.0, 0.9]], dtype=torch.float64)
    loose = rnndiag.jacobian_products(linear_run(shear, steps=8), [8]).log_looseness
    assert loose is not None
    norm = torch.linalg.matrix_norm
    expected = 8 * norm(shear, 2).log() - norm(torch.linalg.matrix_power(shear, 8), 2).log()
    assert expected > 5
    assert torch.allclose(loose, expected, atol=1e-10)


def test_the_bound_of_a_saturated_recording_in_single_precision() -> None:
    """h is 1 to the last digit of float32, where 1 - h² would be 0: below what it bounds."""
    weights = {"weight_ih": torch.ones(1, 1), "weight_hh": torch.full((1, 1), 2.0)}
    inputs, direct = torch.full((12, 1, 1), 8.5), (torch.zeros(12, 1, 1),)
    run = unroll(find_cell("elman_tanh"), weights, inputs, direct)
    assert (run.states[0][1:] == 1).all()
    found = rnndiag.jacobian_products(run, [1, 5], anchors=[0])
    assert found.log_looseness is not None
    assert found.log_spectral.isfinite().all()
    assert found.log_looseness.abs().max() < 1e-9, "one unit: the bound is the norm"


def test_padding_and_gated_cells_have_no_bound() -> None:
    run = draw_run("elman_tanh", lengths=[7, 5, 2])
    found = rnndiag.jacobian_products(run, [4], anchors=[0, 2])
    assert found.log_bound is not None
    assert found.log_bound.isnan().tolist() == [[[False, False, True], [False, True, True]]]
    gated = rnndiag.jacobian_products(draw_run("lstm"), [1])
    assert gated.log_bound is None
    assert gated.log_looseness is None
    assert "product_bound" not in gated.rows()


def test_the_scalar_chain_has_n_factors() -> None:
    """h_t = tanh(w h_{t-1} + x_t): ∂h_n/∂h_0 = Π w (1 - h_t²), n numbers below w, so it vanishes like a power."""
    w, x = 0.9, [0.5, -0.2, 0.1, 0.7, -0.4, 0.3]
    h, factors = 0.1, []
    for value in x:
        h = math.tanh(w * h + value)
        factors.append(w * (1 - h * h))
    run = scalar_run(w, x, start=0.1)
    assert rnndiag.jacobians(run).flatten().tolist() == pytest.approx(factors, rel=1e-14)
    found = rnndiag.jacobian_products(run, [1, 3, 6], anchors=[0])
    expected = [math.log(math.prod(factors[:lag])) for lag in (1, 3, 6)]
    assert found.log_spectral.flatten().tolist() == pytest.approx(expected, abs=1e-14)
    assert found.log_bound is not None
    assert torch.allclose(found.log_bound, found.log_spectral), "one unit: the bound is the norm"
    assert math.exp(expected[2]) < w**6
    before = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    last = before
    for value in x:
        last = torch.tanh(w * last + value)
    last.backward()
    assert math.exp(expected[2]) == pytest.approx(float(before.grad), rel=1e-13)


def scalar_run(w: float, x: list[float], start: float) -> LayerRun:
    weights = {
        "weight_ih": torch.ones(1, 1, dtype=torch.float64),
        "weight_hh": torch.full((1, 1), w, dtype=torch.float64),
    }
    inputs = torch.tensor(x, dtype=torch.float64)[:, None, None]
    return by_hand("elman_tanh", weights, inputs, (torch.full((1, 1), start, dtype=torch.float64),))


def test_a_chain_of_sigmoids_shrinks_by_a_quarter_of_its_weight_a_step() -> None:
    """σ' <= 1/4: with |w| = 1 the factor of n steps is below 4^-n. The cell is one that rnndiag does not know."""

    def run_step(weights: Weights, inputs: Tensor, state: State) -> State:
        return (torch.sigmoid(weights["w"] * state[0] + inputs),)

    cell = Cell(name="sigmoid_chain", parts=("h",), run_step=run_step)
    inputs = torch.linspace(-1, 1, 10, dtype=torch.float64)[:, None, None]
    weights = {"w": torch.ones((), dtype=torch.float64)}
    start = (torch.zeros(1, 1, dtype=torch.float64),)
    run = unroll(cell, weights, inputs, (torch.zeros_like(inputs),), start)
    h = run.states[0].flatten()
    found = rnndiag.jacobian_products(run, range(1, 11), anchors=[0]).log_spectral.flatten()
    assert torch.allclose(found, (h * (1 - h)).log().cumsum(0), atol=1e-13)
    assert (found < -torch.arange(1, 11) * math.log(4)).all()
