"""Singular values of long products against mpmath in as many digits as it takes."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnndiag.engine.spectra.products import GradedProduct


def by_mpmath(factors: Tensor) -> Tensor:
    """ln of the singular values of F_n ... F_1, descending, from the product written out in many digits."""
    spread = torch.linalg.svdvals(factors).log().diff(dim=-1)
    with mpmath.workdps(60 + int(spread[spread.isfinite()].sum().abs())):
        product = mpmath.eye(factors.shape[-1])
        for factor in factors:
            product = mpmath.matrix(factor.tolist()) * product
        values = mpmath.svd_r(product, compute_uv=False)
        return torch.tensor([float(mpmath.log(v)) for v in values], dtype=torch.float64)


def grown(factors: Tensor) -> Tensor:
    """The same by one QR a factor."""
    size = factors.shape[-1]
    product = GradedProduct(1, size, factors.device)
    for factor in factors:
        product.multiply(product.basis @ factor.mT, torch.tensor([size]))
    return product.log_singular_values()[0]


def draw(count: int, size: int, seed: int) -> Tensor:
    return torch.randn(
        count, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("count", [1, 2, 12, 100])
def test_random_factors(count: int) -> None:
    factors = draw(count, 5, seed=count) * torch.logspace(0, -2, 5, dtype=torch.float64)
    assert torch.allclose(grown(factors), by_mpmath(factors), rtol=1e-12, atol=1e-10)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 8), st.floats(0.0, 4.0))
def test_factors_of_any_grading(seed: int, size: int, count: int, decades: float) -> None:
    """Rows and columns of each factor are scaled at random by up to 10^decades, in any order."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(2, count, size, dtype=torch.float64, generator=generator) * -decades
    factors = (
        10 ** scales[0].unsqueeze(-1) * draw(count, size, seed) * 10 ** scales[1].unsqueeze(-2)
    )
    assert torch.allclose(grown(factors), by_mpmath(factors), rtol=1e-11, atol=1e-7)


def test_grading_that_turns_around() -> None:
    """What shrinks first grows later: the small direction must not have been rounded away."""
    turn = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / 2**0.5
    shrink = turn.T @ torch.diag(torch.tensor([1.0, 1e-2], dtype=torch.float64)) @ turn
    grow = turn.T @ torch.diag(torch.tensor([1e-2, 1.0], dtype=torch.float64)) @ turn
    factors = torch.stack([shrink] * 3 + [grow] * 3)
    assert torch.allclose(grown(factors), by_mpmath(factors), rtol=0, atol=1e-9)
    assert grown(factors).tolist() == pytest.approx([-6 * math.log(10)] * 2, abs=1e-8)


def test_exact_zeros_are_minus_infinity() -> None:
    """A zero row lowers the rank; the nonzero singular values are those of the product as it is."""
    factors = draw(30, 4, seed=3)
    factors[7, 2] = 0.0
    factors[9, 0] = 0.0
    product = GradedProduct(1, 4, factors.device)
    for factor in factors:
        rank = factor.ne(0).any(-1).sum()
        product.multiply(product.basis @ factor.mT, rank[None])
    found = product.log_singular_values()[0]
    assert found[3] == -torch.inf
    expected = by_mpmath(factors)
    assert torch.allclose(found[:3], expected[:3], rtol=1e-12, atol=1e-10)


def test_a_product_that_is_zero() -> None:
    factors = torch.zeros(2, 3, 3, dtype=torch.float64)
    assert torch.equal(grown(factors), torch.full((3,), -torch.inf, dtype=torch.float64))
