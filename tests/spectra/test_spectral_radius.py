"""ρ and σ of the recurrent blocks and ρ(J_t): known eigenvalues, and numpy's on the Jacobians of jacrev."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from spectra.hand_made import draw_run, jacobians_by_jacrev, linear_run, orthogonal

import rnndiag
from rnndiag.engine.spectra import radius
from rnndiag.errors import BadArgument, NotExact


def test_known_eigenvalues_of_a_shear() -> None:
    """ρ says 0.5 and 0.9 though the norm is above 5: what a radius alone does not tell."""
    shear = torch.tensor([[0.9, 5.0], [0.0, -0.5]], dtype=torch.float64)
    found = rnndiag.spectral_radius(linear_run(shear, steps=3))
    assert found.blocks == ("h",)
    assert found.radius.tolist() == pytest.approx([0.9])
    assert found.eigenvalues.real.tolist() == [pytest.approx([0.9, -0.5])]
    assert float(found.norm) == pytest.approx(np.linalg.norm(shear.numpy(), 2))
    assert torch.allclose(found.jacobian_radius, torch.full((3, 2), 0.9, dtype=torch.float64))
    assert found.method == "all eigenvalues"


def test_an_orthogonal_matrix_lies_on_the_unit_circle() -> None:
    found = rnndiag.spectral_radius(linear_run(orthogonal(6), steps=2))
    assert torch.allclose(found.eigenvalues.abs(), torch.ones(1, 6, dtype=torch.float64))
    assert float(found.norm) == pytest.approx(1.0)


@pytest.mark.parametrize("cell", ["elman_tanh", "lstm", "gru", "coupled_lstm", "lecture_gru"])
def test_blocks_and_jacobians_against_numpy(cell: str) -> None:
    run = draw_run(cell, lengths=[7, 4, 1])
    found = rnndiag.spectral_radius(run)
    matrices = list(run.weights["weight_hh"].numpy().reshape(-1, 5, 5))
    names = {"elman_tanh": "h", "lstm": "ifgo", "gru": "rzn", "coupled_lstm": "fgo"}
    expected = tuple(names.get(cell, "rz"))
    if cell == "lecture_gru":
        matrices.append(run.weights["weight_hn"].numpy())
        expected = ("r", "z", "weight_hn")
    assert found.blocks == expected
    for i, matrix in enumerate(matrices):
        moduli = np.abs(np.linalg.eigvals(matrix))
        assert float(found.radius[i]) == pytest.approx(moduli.max())
        assert sorted(found.eigenvalues[i].abs().tolist()) == pytest.approx(sorted(moduli))
        assert float(found.norm[i]) == pytest.approx(np.linalg.norm(matrix, 2))
    moduli = np.abs(np.linalg.eigvals(jacobians_by_jacrev(run).numpy())).max(-1)
    alive = run.mask()
    assert np.allclose(found.jacobian_radius[alive], moduli[alive.numpy()], atol=1e-12)
    assert found.jacobian_radius[~alive].isnan().all()


def test_a_projection_closes_the_loop() -> None:
    """W_block is H x P: the loop through h is W_hr W_block; the norm is that of the block as it is."""
    run = draw_run("lstm", projection=3)
    found = rnndiag.spectral_radius(run)
    blocks = run.weights["weight_hh"].numpy().reshape(4, 5, 3)
    loops = run.weights["weight_hr"].numpy() @ blocks
    assert np.allclose(found.radius, np.abs(np.linalg.eigvals(loops)).max(-1))
    assert np.allclose(found.norm, np.linalg.norm(blocks, 2, axis=(1, 2)))


def test_a_cell_without_w_hh_has_the_jacobians_radius_alone() -> None:
    from rnndiag.engine.cells import Cell
    from rnndiag.engine.unroll import unroll

    cell = Cell(name="halving", parts=("x",), run_step=lambda w, x, state: (state[0] / 2 + x,))
    inputs = torch.ones(4, 2, 3, dtype=torch.float64)
    start = (torch.zeros(2, 3, dtype=torch.float64),)
    found = rnndiag.spectral_radius(unroll(cell, {}, inputs, (inputs,), start))
    assert found.blocks == ()
    assert set(found.rows()) == {"jacobian_radius"}
    assert torch.equal(found.jacobian_radius, torch.full((4, 2), 0.5, dtype=torch.float64))


def test_chosen_steps_and_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    run = draw_run("lstm", lengths=[7, 4, 1])
    whole = rnndiag.spectral_radius(run).jacobian_radius
    monkeypatch.setattr(radius, "CHUNK_BYTES", 1)
    some = rnndiag.spectral_radius(run, times=[0, 3, 6])
    assert some.times == (0, 3, 6)
    assert torch.allclose(some.jacobian_radius, whole[[0, 3, 6]], atol=1e-12, equal_nan=True)


def test_large_matrices_by_arpack_keep_the_stated_tolerance() -> None:
    """Rotations of moduli 0.1 .. 1.1 under a change of basis: the largest is 1.1 by construction."""
    size = radius.EXACT_UP_TO + 22
    moduli = torch.linspace(0.1, 1.1, size // 2, dtype=torch.float64)
    angles = torch.linspace(0.2, 3.0, size // 2, dtype=torch.float64)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i, (a, modulus) in enumerate(zip(angles.tolist(), moduli.tolist(), strict=True)):
        turn = [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = modulus * torch.tensor(turn).double()
    basis = torch.eye(size, dtype=torch.float64) + 0.3 * orthogonal(size)
    matrix = basis @ matrix @ torch.linalg.inv(basis)
    found = radius.largest_modulus(matrix[None])
    assert float(found) == pytest.approx(1.1, rel=1e-6)
    assert float(found) == pytest.approx(
        float(torch.linalg.eigvals(matrix).abs().max()), rel=10 * radius.TOLERANCE
    )
    assert radius.largest_modulus(torch.zeros_like(matrix)[None]).tolist() == [0.0]
    run = linear_run(matrix, steps=1, batch=1)
    result = rnndiag.spectral_radius(run)
    assert "ARPACK" in result.method
    assert float(result.jacobian_radius) == pytest.approx(1.1, rel=1e-6)


def test_large_blocks_have_their_six_largest_eigenvalues(monkeypatch: pytest.MonkeyPatch) -> None:
    run = linear_run(torch.diag(torch.linspace(-0.5, 2, 50, dtype=torch.float64)), steps=1)
    monkeypatch.setattr(radius, "ALL_UP_TO", 49)
    found = rnndiag.spectral_radius(run)
    assert found.eigenvalues.shape == (1, 6)
    expected = torch.linspace(-0.5, 2, 50, dtype=torch.float64)[-6:].flip(0)
    assert torch.allclose(found.eigenvalues[0].real, expected, atol=1e-7)
    assert float(found.radius) == pytest.approx(2.0)


def test_what_arpack_does_not_find_is_computed_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.sparse.linalg import ArpackNoConvergence

    def gives_up(*args: object, **kwargs: object) -> None:
        raise ArpackNoConvergence("no convergence", [], [])

    monkeypatch.setattr("scipy.sparse.linalg.eigs", gives_up)
    matrix = torch.diag(torch.linspace(-3, 2, 130, dtype=torch.float64))
    assert radius.largest_modulus(matrix[None]).tolist() == pytest.approx([3.0])


def test_a_run_in_single_precision_is_taken_in_double() -> None:
    run = draw_run("lstm")
    exact = run.to(dtype=torch.float32).to(dtype=torch.float64)
    single = rnndiag.spectral_radius(run.to(dtype=torch.float32)).jacobian_radius
    assert torch.equal(single, rnndiag.spectral_radius(exact).jacobian_radius)


def test_a_step_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadArgument, match="from 0 to 6"):
        rnndiag.spectral_radius(draw_run("gru"), times=[3, 9])


def test_a_broken_weight_is_named() -> None:
    run = draw_run("gru")
    run.weights["weight_hh"][0, 0] = math.inf
    with pytest.raises(NotExact, match="weight_hh of layer"):
        rnndiag.spectral_radius(run)
