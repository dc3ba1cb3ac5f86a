"""Training with truncated and randomized gradients: what a loop back-propagates is what the estimators say."""

from __future__ import annotations

import pytest
import torch
from reference import STEPS, relative
from torch import Tensor, nn
from truncation.naive import Problem, problem

from rnndiag import cell_only, estimators, scale_gradient, truncated_unroll
from rnndiag.errors import BadArgument, NotSupported
from rnndiag.train import chunks_of


class Step(nn.Module):
    """One step of a reference cell as a module: (x, state) -> (all parts side by side, state)."""

    def __init__(self, p: Problem) -> None:
        super().__init__()
        self.cell = p.cells[0]
        self.weights = nn.ParameterDict({k: nn.Parameter(v) for k, v in p.weights[0].items()})

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        new = STEPS[self.cell](dict(self.weights.items()), x, state)
        return torch.cat(new, -1), new


def trained(p: Problem, estimator: object, seed: int = 0) -> Tensor:
    """The gradient that a loop with this estimator back-propagates."""
    module = Step(p)
    outputs, _ = truncated_unroll(
        module,
        p.inputs,
        p.initial[0],
        estimator,  # type: ignore[arg-type]
        torch.Generator().manual_seed(seed),
    )
    loss = (outputs * torch.cat(p.direct[0], -1)).sum()
    leaves = [module.weights[key] for key in p.weights[0]]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_deterministic_rules(cell: str) -> None:
    p = problem(cell, T=9, B=3)
    assert relative(trained(p, estimators.Full()), p.full()) < 1e-12
    for k in (1, 2, 4, 9, 12):
        assert relative(trained(p, estimators.Chunk(k)), p.chunk(k, k)) < 1e-12
        assert relative(trained(p, estimators.Window(k)), p.window(k)) < 1e-12
    for k1, k2 in ((1, 3), (2, 3), (3, 7), (4, 2), (4, 9), (5, 20), (12, 4)):
        assert relative(trained(p, estimators.Chunk(k1, k2)), p.chunk(k1, k2)) < 1e-12
    for k in (1, 4, 9):
        expected = p.gradient([(k - 1, 9, range(9))])
        assert relative(trained(p, estimators.SourceStep(k)), expected) < 1e-12


def test_the_forward_pass_is_the_plain_one() -> None:
    p = problem("lstm", T=9, B=3)
    plain, final = truncated_unroll(Step(p), p.inputs, p.initial[0])
    for estimator in (
        estimators.Chunk(3),
        estimators.Window(4),
        estimators.Bernoulli(0.5),
        estimators.Uniform(),
        estimators.CellOnly(),
        estimators.Roulette(0.7),
    ):
        outputs, last = truncated_unroll(Step(p), p.inputs, p.initial[0], estimator)
        assert torch.allclose(outputs, plain, rtol=1e-13, atol=0)
        assert all(torch.allclose(a, b) for a, b in zip(last, final, strict=True))


def test_cell_only() -> None:
    p = problem("lstm", T=7)
    leaves = {k: v.clone().requires_grad_() for k, v in p.weights[0].items()}
    state, total = p.initial[0], torch.zeros((), dtype=torch.float64)
    for t in range(7):
        state = STEPS["lstm"](leaves, p.inputs[t], (state[0].detach(), state[1]))
        total = total + sum((e[t] * s).sum() for e, s in zip(p.direct[0], state, strict=True))
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(leaves.values()))])
    assert relative(trained(p, estimators.CellOnly()), expected) < 1e-12


def test_bernoulli_uses_the_drawn_mask() -> None:
    p = problem("gru", T=8)
    for estimator in (
        estimators.Bernoulli(0.6),
        estimators.Bernoulli(estimators.artbp(3.0)),
        estimators.Bernoulli([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
    ):
        for seed in range(4):
            xi = estimator.state_factors(8, torch.Generator().manual_seed(seed))
            expected = p.gradient([(0, 8, range(8))], xi)
            assert relative(trained(p, estimator, seed), expected) < 1e-12


def test_bernoulli_with_a_mask_a_sequence() -> None:
    p = problem("gru", T=8, B=3)
    estimator = estimators.Bernoulli(0.6, shared=False)
    xi = estimator.state_factors(8, torch.Generator().manual_seed(1), (3,))
    parts = [q.gradient([(0, 8, range(8))], xi[:, b]) for b, q in enumerate(p.sequences())]
    assert relative(trained(p, estimator, 1), torch.stack(parts).sum(0)) < 1e-12


def test_uniform_and_roulette_average_to_the_gradient() -> None:
    """Uniform over K and roulette over N, each value of the drawn number seen and weighed by its probability."""
    p = problem("gru", T=5, B=2)
    full = p.full()
    by_k: dict[int, Tensor] = {}
    seed = 0
    while len(by_k) < 5:
        weights = estimators.Uniform().source_factors(5, torch.Generator().manual_seed(seed))
        by_k[int((weights == 0).sum())] = trained(p, estimators.Uniform(), seed)
        seed += 1
    assert relative(torch.stack(list(by_k.values())).mean(0), full) < 1e-12
    roulette = estimators.Roulette([0.3, 0.2, 0.2, 0.2, 0.1])
    by_n: dict[int, Tensor] = {}
    seed = 0
    while len(by_n) < 5:
        kept = roulette.lag_factors(5, torch.Generator().manual_seed(seed))
        by_n[len(kept) - 1] = trained(p, roulette, seed)
        seed += 1
    mean = sum(p_n * by_n[n] for n, p_n in enumerate([0.3, 0.2, 0.2, 0.2, 0.1]))
    assert relative(mean, full) < 1e-12  # type: ignore[arg-type]


def test_scale_gradient_on_any_state() -> None:
    h = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    c = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    state = {"lstm": (h, [c, None])}
    scaled = scale_gradient(state, 0.25)
    assert torch.equal(scaled["lstm"][0], h)
    (scaled["lstm"][0].sum() + 2 * scaled["lstm"][1][0].sum()).backward()
    assert torch.equal(h.grad, torch.full_like(h, 0.25))  # type: ignore[arg-type]
    assert torch.equal(c.grad, torch.full_like(c, 0.5))  # type: ignore[arg-type]
    h.grad = None
    by_sequence = torch.tensor([[0.0], [1.0], [3.0]])
    scale_gradient(h, by_sequence).sum().backward()
    assert torch.equal(h.grad, by_sequence.double().expand(3, 4))  # type: ignore[arg-type]
    assert not scale_gradient(h, 0).requires_grad
    assert scale_gradient(h, 1.0) is h
    layers = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    scale_gradient(layers, by_sequence).sum().backward()
    assert torch.equal(layers.grad[1, :, 0], by_sequence[:, 0].double())  # type: ignore[index]
    assert torch.autograd.gradcheck(lambda x: scale_gradient(x, 1.0) * 2, (h,))
    assert torch.autograd.gradgradcheck(lambda x: scale_gradient(x.tanh(), 1.0), (h,))


def test_chunks_of_a_sequence_in_an_ordinary_loop() -> None:
    """nn.LSTM over chunks with the state carried and cut: the same gradient as Chunk(k)."""
    p = problem("lstm", T=10, B=3)
    module = nn.LSTM(4, 4).double()
    with torch.no_grad():
        for key, value in p.weights[0].items():
            getattr(module, f"{key}_l0").copy_(value)
    state = tuple(part[None] for part in p.initial[0])
    total, start = torch.zeros((), dtype=torch.float64), 0
    for chunk in chunks_of(p.inputs, 4):
        outputs, state = module(chunk, scale_gradient(state, 0.0))
        total = total + (outputs * p.direct[0][0][start : start + len(chunk)]).sum()
        start += len(chunk)
    p.direct = [(p.direct[0][0], torch.zeros_like(p.direct[0][1]))]
    grads = torch.autograd.grad(total, list(module.parameters()))
    assert relative(torch.cat([g.flatten() for g in grads]), p.chunk(4, 4)) < 1e-12


def test_mistakes_are_told() -> None:
    p = problem("gru", T=3)
    with pytest.raises(BadArgument, match="a str"):
        scale_gradient("state", 0.5)
    with pytest.raises(BadArgument, match="several parts"):
        cell_only(torch.zeros(3))
    with pytest.raises(NotSupported, match="cannot be unrolled with"):
        truncated_unroll(Step(p), p.inputs, p.initial[0], estimators.Clip(1.0))
    with pytest.raises(BadArgument, match="optimal p depends on the step"):
        truncated_unroll(Step(p), p.inputs, p.initial[0], estimators.Roulette("optimal"))
    with pytest.raises(BadArgument, match="chunk size is 0"):
        list(chunks_of(p.inputs, 0))
