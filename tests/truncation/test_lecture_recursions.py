"""The lectures' own recursions, hand-written in numpy, against the estimators."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rnndiag import LayerRun, credit_matrix, estimate, estimators, lag_sweep, loss_terms
from rnndiag.engine.cells import find_cell
from rnndiag.engine.unroll import unroll

LETTERS = "helo"
TEXT = "hellohello"
H = 5


def hello() -> tuple[dict[str, np.ndarray], list[int], list[int]]:
    rng = np.random.default_rng(0)
    weights = {
        "U": rng.uniform(-0.5, 0.5, (H, 4)),
        "W": rng.uniform(-0.7, 0.7, (H, H)),
        "V": rng.uniform(-0.5, 0.5, (4, H)),
    }
    letters = [LETTERS.index(letter) for letter in TEXT]
    return weights, letters[:-1], letters[1:]


def numpy_bptt(
    weights: dict[str, np.ndarray], x: list[int], y: list[int], truncate: int
) -> tuple[np.ndarray, np.ndarray]:
    """dU and dW with `truncate` steps back besides the loss's own, one-hot inputs picking a column of U."""
    U, W, V = weights["U"], weights["W"], weights["V"]
    T = len(x)
    s, o = np.zeros((T + 1, H)), np.zeros((T, 4))
    for t in range(T):
        s[t] = np.tanh(U[:, x[t]] + W @ s[t - 1])
        scores = np.exp(V @ s[t])
        o[t] = scores / scores.sum()
    dU, dW = np.zeros_like(U), np.zeros_like(W)
    for t in reversed(range(T)):
        error = o[t].copy()
        error[y[t]] -= 1
        delta = (V.T @ error) * (1 - s[t] ** 2)
        for k in range(t, max(0, t - truncate) - 1, -1):
            dW += np.outer(delta, s[k - 1])
            dU[:, x[k]] += delta
            delta = (W.T @ delta) * (1 - s[k - 1] ** 2)
    return dU, dW


def hello_run() -> LayerRun:
    weights, x, y = hello()
    inputs = torch.nn.functional.one_hot(torch.tensor(x), 4).double()[:, None]
    own = {"weight_ih": torch.tensor(weights["U"]), "weight_hh": torch.tensor(weights["W"])}
    silent = torch.zeros(len(x), 1, H, dtype=torch.float64)
    states = unroll(find_cell("elman_tanh"), own, inputs, (silent,)).states[0]
    leaf = states.clone().requires_grad_()
    scores = leaf[:, 0] @ torch.tensor(weights["V"]).T
    torch.nn.functional.cross_entropy(scores, torch.tensor(y), reduction="sum").backward()
    assert leaf.grad is not None
    return unroll(find_cell("elman_tanh"), own, inputs, (leaf.grad,))


@pytest.mark.parametrize("truncate", range(10))
def test_numpy_listing_agrees_with_every_window(truncate: int) -> None:
    """`bptt_truncate = K` keeps K + 1 states."""
    weights, x, y = hello()
    dU, dW = numpy_bptt(weights, x, y, truncate)
    score = estimate(hello_run(), estimators.Window.beyond(truncate))
    assert np.allclose(score.mean["weight_ih"].numpy(), dU, rtol=0, atol=1e-12)
    assert np.allclose(score.mean["weight_hh"].numpy(), dW, rtol=0, atol=1e-12)


def test_one_loss_term_by_term() -> None:
    """dE_3/dW = Σ_k (dE_3/ds_3) (ds_3/ds_k) (ds_k/dW), each term written out."""
    weights, _, _ = hello()
    run = hello_run()
    s = torch.cat([torch.zeros(1, H, dtype=torch.float64), run.states[0][:, 0]]).numpy()
    delta = run.direct[0][3, 0].numpy().copy()
    terms = loss_terms(run, "weight_hh", 3).numpy()
    for k in range(3, -1, -1):
        before_activation = delta * (1 - s[k + 1] ** 2)
        expected = np.outer(before_activation, s[k])
        assert np.allclose(terms[k], expected, rtol=0, atol=1e-14)
        delta = weights["W"].T @ before_activation


def test_forward_accumulation_gives_the_same_gradient() -> None:
    """a_t = b_t + c_t a_{t-1}, run forwards: dL/dw = Σ_t (dL_t/dh_t) a_t."""
    rng = np.random.default_rng(1)
    w, u, T = 0.8, 0.5, 9
    x, e = rng.standard_normal(T), rng.standard_normal(T)
    h, a, gradient = 0.0, 0.0, 0.0
    for t in range(T):
        new = math.tanh(w * h + u * x[t])
        slope = 1 - new**2
        a = slope * h + slope * w * a
        h = new
        gradient += e[t] * a
    run = unroll(
        find_cell("elman_tanh"),
        {
            "weight_ih": torch.tensor([[u]], dtype=torch.float64),
            "weight_hh": torch.tensor([[w]], dtype=torch.float64),
        },
        torch.tensor(x).view(T, 1, 1),
        (torch.tensor(e).view(T, 1, 1),),
    )
    assert float(lag_sweep(run).gradient["weight_hh"]) == pytest.approx(gradient, rel=1e-12)


def test_scalar_credit_is_a_product_of_factors() -> None:
    """C[u, s] = |e_u| Π_{j=s+1..u} |w (1 - h_j²)|."""
    T, w = 7, 1.3
    x = torch.linspace(-1, 1, T, dtype=torch.float64).view(T, 1, 1)
    run = unroll(
        find_cell("elman_tanh"),
        {
            "weight_ih": torch.tensor([[0.7]], dtype=torch.float64),
            "weight_hh": torch.tensor([[w]], dtype=torch.float64),
        },
        x,
        (torch.full((T, 1, 1), 2.0, dtype=torch.float64),),
    )
    h = run.states[0].flatten()
    matrix = credit_matrix(run)
    for u in range(T):
        for s in range(u + 1):
            expected = 2.0 * float((w * (1 - h[s + 1 : u + 1] ** 2)).abs().prod())
            assert float(matrix[u, s]) == pytest.approx(expected, rel=1e-12)


def test_clipping_keeps_the_relative_contribution_of_every_lag() -> None:
    """The lecture's point: a clipped gradient points where it pointed, so what has vanished stays so."""
    run = hello_run()
    full = lag_sweep(run, lag_gradients=True)
    size = full.full_gradient_norm
    clipped = estimate(run, estimators.Clip(size / 10))
    factor = clipped.mean["weight_hh"] / full.gradient["weight_hh"]
    assert torch.allclose(factor, torch.full_like(factor, 0.1), rtol=1e-10)
    assert clipped.cosine == pytest.approx(1, abs=1e-12)
    assert clipped.bias == pytest.approx(0.9, abs=1e-12)
