"""Φ(t, k) over lag: against written-out products, closed forms, and over lengths that no float can hold."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from spectra.hand_made import draw_run, jacobians_by_jacrev, linear_run, orthogonal
from torch import Tensor

import rnndiag
from rnndiag.engine.spectra import jacobians, products
from rnndiag.errors import BadArgument, NotExact


def written_out(jacobians: Tensor, start: int, lag: int) -> Tensor:
    """J_{k+d} ... J_{k+1}: the later factor stands on the left. Step k+1 has index k."""
    product = torch.eye(jacobians.shape[-1], dtype=torch.float64)
    for step in range(start, start + lag):
        product = jacobians[step] @ product
    return product


@pytest.mark.parametrize("cell", ["elman_tanh", "gru", "lecture_gru"])
def test_norms_are_those_of_the_written_out_product(cell: str) -> None:
    run = draw_run(cell, steps=9, gain=1.5)
    jacobians = jacobians_by_jacrev(run)
    found = rnndiag.jacobian_products(run, [1, 2, 5], anchors=[0, 3])
    for i, lag in enumerate(found.lags):
        for j, start in enumerate(found.anchors):
            for b in range(run.B):
                product = written_out(jacobians[:, b], start, lag)
                values = torch.linalg.svdvals(product)
                place = (i, j, b)
                expected = {
                    "log_spectral": torch.linalg.matrix_norm(product, 2).log(),
                    "log_frobenius": torch.linalg.matrix_norm(product, "fro").log(),
                    "log_smallest": values[-1].log(),
                    "log_median": values.log().median(),
                }
                for name, value in expected.items():
                    assert torch.isclose(getattr(found, name)[place], value, atol=1e-9), name
                assert torch.allclose(found.log_singular_values[place], values.log(), atol=1e-8)


@pytest.mark.parametrize(("cell", "steps", "lag"), [("elman_tanh", 40, 40), ("lstm", 30, 25)])
def test_small_singular_values_keep_their_digits(cell: str, steps: int, lag: int) -> None:
    """The product's condition is far beyond float64's 1e16, and its smallest singular value is right all the same."""
    run = draw_run(cell, steps=steps, batch=1, units=4)
    found = rnndiag.jacobian_products(run, [lag], anchors=[0])
    factors = jacobians_by_jacrev(run)[:lag, 0]
    with mpmath.workdps(300):
        product = mpmath.eye(run.S)
        for factor in factors:
            product = mpmath.matrix(factor.tolist()) * product
        exact = [float(mpmath.log(v)) for v in mpmath.svd_r(product, compute_uv=False)]
    assert exact[0] - exact[-1] > 50
    assert found.log_singular_values[0, 0, 0].tolist() == pytest.approx(exact, abs=1e-9)
    assert float(found.log_smallest) == pytest.approx(exact[-1], abs=1e-9)


def test_one_lag_and_one_anchor_need_no_list() -> None:
    run = draw_run("lstm")
    one = rnndiag.jacobian_products(run, 3, anchors=1)
    listed = rnndiag.jacobian_products(run, [3], anchors=[1])
    assert (one.lags, one.anchors) == ((3,), (1,))
    assert torch.equal(one.log_singular_values, listed.log_singular_values)


def test_lags_and_anchors_are_whole_numbers_of_any_library() -> None:
    run = draw_run("lstm")
    expected = rnndiag.jacobian_products(run, [1, 3], anchors=[0])
    for lags in (np.array([1, 3]), torch.tensor([3, 1]), range(1, 4, 2), [np.int64(1), 3]):
        found = rnndiag.jacobian_products(run, lags, anchors=np.int64(0))
        assert (found.lags, found.anchors) == (expected.lags, expected.anchors)
    assert rnndiag.jacobian_products(run, torch.tensor(3)).lags == (3,)
    for wrong in (
        3.7,
        [3.7],
        "12",
        b"\x01",
        True,
        [True],
        torch.tensor(True),
        [None],
        None,
        torch.ones(2),
    ):
        with pytest.raises(BadArgument, match="lags is"):
            rnndiag.jacobian_products(run, wrong)
    with pytest.raises(BadArgument, match="anchors is"):
        rnndiag.jacobian_products(run, 1, anchors=[0.5])


def test_the_order_of_the_factors() -> None:
    """Non-commuting factors: the reversed product, and the transposed one in forward order, are other matrices."""
    run = draw_run("elman_tanh", steps=4, batch=1, gain=2.0)
    factors = jacobians_by_jacrev(run)[:, 0]
    right = torch.linalg.matrix_norm(factors[3] @ factors[2] @ factors[1] @ factors[0], 2).log()
    reverse = torch.linalg.matrix_norm(factors[0] @ factors[1] @ factors[2] @ factors[3], 2).log()
    found = float(rnndiag.jacobian_products(run, [4], anchors=[0]).log_spectral)
    assert found == pytest.approx(float(right), abs=1e-12)
    assert abs(float(right - reverse)) > 0.1


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_5000_steps_neither_under_nor_overflow(factor: float) -> None:
    run = linear_run(factor * orthogonal(4), steps=5000, batch=1)
    found = rnndiag.jacobian_products(run, [1, 1000, 5000], anchors=[0])
    for lag, values in zip(found.lags, found.log_singular_values[:, 0, 0], strict=True):
        assert values.tolist() == pytest.approx([lag * math.log(factor)] * 4, abs=1e-8)
    assert torch.allclose(
        found.finite_time_exponents,
        torch.full((3, 4), math.log(factor), dtype=torch.float64),
        rtol=0,
        atol=1e-11,
    )


def test_5000_steps_of_a_net_keep_the_determinant() -> None:
    """Σ ln σ_i = Σ ln |det J_t|, though the singular values are e^1000 and more apart."""
    run = draw_run("elman_tanh", steps=5000, batch=1, units=3, gain=1.5)
    found = rnndiag.jacobian_products(run, [5000], anchors=[0]).log_singular_values
    assert found.isfinite().all()
    assert found[..., 0] - found[..., -1] > 1000
    whole = torch.linalg.slogdet(rnndiag.jacobians(run)).logabsdet.sum()
    assert float(found.sum()) == pytest.approx(float(whole), rel=1e-11)


def test_a_relu_unit_at_rest_makes_the_product_singular() -> None:
    run = draw_run("elman_relu", steps=6, batch=1)
    h = run.states[0][:, 0]
    found = rnndiag.jacobian_products(run, [1, 6], anchors=[0])
    ranks = torch.linalg.matrix_rank(rnndiag.jacobians(run)[:, 0])
    assert 0 < int((h[0] > 0).sum()) < run.S
    assert int(found.log_singular_values[0].isfinite().sum()) == int((h[0] > 0).sum()) == ranks[0]
    assert float(found.log_smallest[1]) == -math.inf
    product = written_out(jacobians_by_jacrev(run)[:, 0], 0, 6)
    kept = torch.linalg.svdvals(product)[: int(found.log_singular_values[1].isfinite().sum())]
    assert torch.allclose(found.log_singular_values[1, 0, 0, : len(kept)], kept.log(), atol=1e-8)
    assert float(found.rows()["product_smallest"][1, 0]) == -math.inf


def test_padding_is_no_part_of_any_product() -> None:
    run = draw_run("lstm", steps=8, lengths=[8, 5, 2])
    found = rnndiag.jacobian_products(run, [1, 3, 6], anchors=[0, 2, 4])
    ends = torch.tensor([[k + d for k in (0, 2, 4)] for d in (1, 3, 6)])
    for b, length in enumerate((8, 5, 2)):
        assert torch.equal(found.log_spectral[..., b].isfinite(), ends <= length)
    alone = draw_run("lstm", steps=8).select([1])
    expected = rnndiag.jacobian_products(alone, [1, 3], anchors=[0, 2])
    both = found.log_singular_values[:2, :2, 1:2]
    assert torch.allclose(both, expected.log_singular_values, rtol=0, atol=1e-10)
    assert found.rows()["product_spectral"].isfinite().all()


def test_chunks_over_samples_anchors_and_time_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = draw_run("peephole_lstm", lengths=[7, 5, 3])
    whole = rnndiag.jacobian_products(run, [1, 2, 4])
    monkeypatch.setattr(products, "CHUNK_BYTES", 1)
    monkeypatch.setattr(jacobians, "STRETCH_BYTES", 1)
    pieces = rnndiag.jacobian_products(run, [1, 2, 4])
    assert whole.anchors == pieces.anchors == (0, 1, 2, 3, 4, 5, 6)
    assert torch.allclose(
        whole.log_singular_values, pieces.log_singular_values, atol=1e-10, equal_nan=True
    )


def test_the_whole_spectrum_of_chosen_pairs() -> None:
    run = draw_run("gru", steps=9)
    pairs = [(9, 2), (4, 0), (6, 2)]
    found = rnndiag.singular_spectrum(run, pairs)
    assert found.shape == (3, run.B, run.S)
    jacobians = jacobians_by_jacrev(run)
    for row, (t, k) in zip(found, pairs, strict=True):
        expected = torch.linalg.svdvals(written_out(jacobians[:, 1], k, t - k)).log()
        assert torch.allclose(row[1], expected, atol=1e-8)
    with pytest.raises(BadArgument, match="0 <= k < t <= T"):
        rnndiag.singular_spectrum(run, [(3, 3)])


def test_what_makes_no_sense_is_refused() -> None:
    run = draw_run("gru")
    with pytest.raises(BadArgument, match="lags from 1 to 7"):
        rnndiag.jacobian_products(run, [0, 3])
    with pytest.raises(BadArgument, match="from 0"):
        rnndiag.jacobian_products(run, [3], anchors=[5])
    run.states[0][4, 1, 2] = math.nan
    with pytest.raises(NotExact, match="state h of layer is not finite from step 4"):
        rnndiag.jacobian_products(run, [1])
