"""Closed forms and published facts: linear nets, products of scalars, and a BPTT written by hand in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import draw_weights, relative

from rnndiag.engine.adjoints import adjoints
from rnndiag.engine.cells import find_cell
from rnndiag.engine.contributions import contributions
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.unroll import unroll

T, B, H = 9, 2, 4


def linear_run(matrix: torch.Tensor, steps: int = T) -> LayerRun:
    """h_t = W h_{t-1} + x_t with a loss on the last state alone."""
    draw = torch.Generator().manual_seed(3)
    direct = torch.zeros(steps, B, H, dtype=torch.float64)
    direct[-1] = torch.randn(B, H, dtype=torch.float64, generator=draw)
    inputs = torch.randn(steps, B, H, dtype=torch.float64, generator=draw)
    weights = {"weight_ih": torch.eye(H, dtype=torch.float64), "weight_hh": matrix}
    return unroll(find_cell("linear"), weights, inputs, (direct,))


def orthogonal() -> torch.Tensor:
    square = torch.randn(H, H, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return torch.linalg.qr(square)[0]


def test_linear_net_powers_of_the_transposed_matrix() -> None:
    matrix = draw_weights("linear", H, H)["weight_hh"]
    run = linear_run(matrix)
    delta = adjoints(run).state
    for t in range(T):
        power = torch.linalg.matrix_power(matrix.T, T - 1 - t)
        assert relative(delta[t], run.direct[0][-1] @ power.T) <= 1e-13


@given(scale=st.floats(0.2, 2.0))
def test_scaled_orthogonal_net_keeps_every_norm_times_a_power(scale: float) -> None:
    delta = adjoints(linear_run(scale * orthogonal())).state.norm(dim=-1)
    for d in range(T):
        assert torch.allclose(delta[T - 1 - d], delta[-1] * scale**d, rtol=1e-12)


def test_closed_form_of_the_lectures_for_a_loss_at_every_step() -> None:
    """dL/dh_t = Σ_{i=t..T} (W_hh^T)^{T-i} W_qh^T dL/do_{T+t-i}."""
    matrix = draw_weights("linear", H, H, seed=4)["weight_hh"]
    draw = torch.Generator().manual_seed(6)
    readout = torch.randn(3, H, dtype=torch.float64, generator=draw)
    upstream = torch.randn(T, B, 3, dtype=torch.float64, generator=draw)
    inputs = torch.randn(T, B, H, dtype=torch.float64, generator=draw)
    weights = {"weight_ih": torch.eye(H, dtype=torch.float64), "weight_hh": matrix}
    delta = adjoints(unroll(find_cell("linear"), weights, inputs, (upstream @ readout,))).state
    for t in range(1, T + 1):
        expected = sum(
            upstream[T + t - i - 1] @ readout @ torch.linalg.matrix_power(matrix.T, T - i).T
            for i in range(t, T + 1)
        )
        assert relative(delta[t - 1], expected) <= 1e-13


@pytest.mark.parametrize("weight", [0.5, 0.9, 1.4])
def test_scalar_tanh_net_is_a_product_of_factors(weight: float) -> None:
    """∂h_T/∂h_k = Π_{j=k+1..T} w (1 - h_j²): one factor a step."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=T)
    h = [0.0]
    for value in x:
        h.append(math.tanh(value + weight * h[-1]))
    one = torch.ones(1, 1, dtype=torch.float64)
    direct = torch.zeros(T, 1, 1, dtype=torch.float64)
    direct[-1] = 1.0
    run = unroll(
        find_cell("elman_tanh"),
        {"weight_ih": one, "weight_hh": weight * one},
        torch.tensor(x).view(T, 1, 1),
        (direct,),
    )
    delta = adjoints(run).state.flatten()
    for k in range(1, T + 1):
        product = math.prod(weight * (1 - h[j] ** 2) for j in range(k + 1, T + 1))
        assert float(delta[k - 1]) == pytest.approx(product, rel=1e-12)


VOCABULARY = "helo"


def hello_by_hand(bptt_truncate: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Character-level 'hello' in plain numpy: s_t = tanh(U x_t + W s_{t-1}), softmax(V s_t), cross-entropy.

    For the loss at t the steps max(0, t - bptt_truncate)..t are collected: bptt_truncate + 1 states.
    """
    draw = np.random.default_rng(1)
    units, letters = 5, len(VOCABULARY)
    U = draw.uniform(-0.5, 0.5, (units, letters))
    V = draw.uniform(-0.5, 0.5, (letters, units))
    W = draw.uniform(-0.9, 0.9, (units, units))
    x = [VOCABULARY.index(letter) for letter in "hell"]
    y = [VOCABULARY.index(letter) for letter in "ello"]
    steps = len(x)
    s = np.zeros((steps + 1, units))
    o = np.zeros((steps, letters))
    for t in range(steps):
        s[t] = np.tanh(U[:, x[t]] + W @ s[t - 1])
        scores = np.exp(V @ s[t])
        o[t] = scores / scores.sum()
    dU, dV, dW = np.zeros_like(U), np.zeros_like(V), np.zeros_like(W)
    delta_o = o.copy()
    delta_o[np.arange(steps), y] -= 1.0
    for t in range(steps):
        dV += np.outer(delta_o[t], s[t])
        delta = V.T @ delta_o[t] * (1 - s[t] ** 2)
        for step in range(t, max(0, t - bptt_truncate) - 1, -1):
            dW += np.outer(delta, s[step - 1])
            dU[:, x[step]] += delta
            delta = W.T @ delta * (1 - s[step - 1] ** 2)
    return {"U": U, "V": V, "W": W, "x": np.array(x), "delta_o": delta_o}, {"U": dU, "W": dW}


def hello_run() -> LayerRun:
    """The same net as a layer run; s before the first step is zero."""
    net, _ = hello_by_hand(0)
    inputs = torch.eye(len(VOCABULARY), dtype=torch.float64)[torch.tensor(net["x"])][:, None]
    direct = torch.tensor(net["delta_o"] @ net["V"])[:, None]
    weights = {"weight_ih": torch.tensor(net["U"]), "weight_hh": torch.tensor(net["W"])}
    return unroll(find_cell("elman_tanh"), weights, inputs, (direct,))


def test_hello_agrees_with_a_hand_written_bptt() -> None:
    _, expected = hello_by_hand(bptt_truncate=10)
    run = hello_run()
    for key, name in (("weight_ih", "U"), ("weight_hh", "W")):
        assert relative(contributions(run, key).sum(0), torch.tensor(expected[name])) <= 1e-13


def test_hello_agrees_for_one_loss_and_every_truncation() -> None:
    """The hand-written listing keeps bptt_truncate + 1 states: held against adjoints of the losses one at a time."""
    run = hello_run()
    steps = run.T
    for truncate in range(steps):
        total = {key: torch.zeros_like(run.weights[key]) for key in ("weight_ih", "weight_hh")}
        for u in range(steps):
            only = torch.zeros_like(run.direct[0])
            only[u] = run.direct[0][u]
            alone = LayerRun(
                run.name, run.cell, run.weights, run.inputs, run.states, run.initial, (only,)
            )
            for key, value in total.items():
                value += contributions(alone, key)[max(0, u - truncate) : u + 1].sum(0)
        _, expected = hello_by_hand(truncate)
        assert relative(total["weight_hh"], torch.tensor(expected["W"])) <= 1e-13
        assert relative(total["weight_ih"], torch.tensor(expected["U"])) <= 1e-13


@pytest.mark.parametrize("t", range(4))
def test_readout_gradient_depends_on_step_t_alone_and_that_of_w_on_all_before(t: int) -> None:
    net, _ = hello_by_hand(10)

    def gradients(cut: bool) -> tuple[torch.Tensor, ...]:
        leaves = [torch.tensor(net[key], requires_grad=True) for key in "UVW"]
        h = torch.zeros(5, dtype=torch.float64)
        for k in range(t + 1):
            h = torch.tanh(leaves[0][:, net["x"][k]] + leaves[2] @ (h.detach() if cut else h))
        loss = -torch.log_softmax(leaves[1] @ h, 0)[VOCABULARY.index("ello"[t])]
        return torch.autograd.grad(loss, leaves)

    full, cut = gradients(cut=False), gradients(cut=True)
    assert torch.equal(full[1], cut[1])
    assert torch.equal(full[2], cut[2]) == (t <= 1)  # h before step 0 is zero
    run = hello_run()
    expected = torch.outer(torch.tensor(net["delta_o"][t]), run.states[0][t, 0])
    assert relative(full[1], expected) <= 1e-13


def test_forward_accumulation_gives_the_same_gradient() -> None:
    """RTRL: p_t = ∂h_t/∂W by the forward recursion p_t = b_t + J_t p_{t-1}, no backward pass."""
    run = hello_run()
    W = run.weights["weight_hh"]
    units = W.shape[0]
    sensitivity = torch.zeros(units, units * units, dtype=torch.float64)
    gradient = torch.zeros(units * units, dtype=torch.float64)
    before = run.previous()[0]
    for t in range(run.T):
        slope = torch.diag(1 - run.states[0][t, 0] ** 2)
        immediate = torch.kron(slope, before[t])
        sensitivity = immediate + slope @ W @ sensitivity
        gradient += run.direct[0][t, 0] @ sensitivity
    assert relative(contributions(run, "weight_hh").sum(0).flatten(), gradient) <= 1e-13
