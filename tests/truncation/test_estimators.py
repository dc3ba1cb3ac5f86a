"""Every estimator against naive loops, and against the enumeration of all it can come out as, in float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import STEPS, relative
from scipy.optimize import minimize
from truncation.naive import Problem, flat, problem

from rnndiag import estimate, estimators, lag_sweep
from rnndiag.engine.truncation.chains.stack import chain_of
from rnndiag.engine.truncation.estimators import ESTIMATORS
from rnndiag.engine.truncation.estimators.estimate import compare_estimators
from rnndiag.engine.truncation.estimators.estimator import Task
from rnndiag.engine.truncation.estimators.roulette import lag_costs, optimal_survival
from rnndiag.engine.truncation.sweep.chunk_scores import default_sizes
from rnndiag.engine.truncation.sweep.parameter_layout import layout_of
from rnndiag.engine.truncation.sweep.truncated_adjoints import scan
from rnndiag.errors import BadArgument, NotSupported

LENGTHS = [12, 5, 9, 1]


def task_of(p: Problem, draws: int = 8, seed: int = 0) -> Task:
    chain = chain_of(p.run if len(p.runs) == 1 else p.runs).prepared()
    return Task(chain, layout_of(chain), draws, torch.Generator().manual_seed(seed))


def check(p: Problem, estimator: object, expected: torch.Tensor) -> None:
    """A deterministic estimator: its gradient, bias and cosine."""
    runs = p.run if len(p.runs) == 1 else p.runs
    score = estimate(runs, estimator)  # type: ignore[arg-type]
    full = p.full()
    assert relative(flat(score.mean), expected) < 1e-10
    size = float(full.norm())
    assert score.bias == pytest.approx(float((expected - full).norm()) / size, abs=1e-10)
    assert score.rmse == pytest.approx(score.bias, abs=1e-10)
    assert score.sd == pytest.approx(0, abs=1e-6)
    if not expected.any():
        assert math.isnan(score.cosine)
        return
    cosine = float(expected @ full) / float(expected.norm()) / size
    assert score.cosine == pytest.approx(cosine, abs=1e-10)
    assert score.draw_cosine == pytest.approx(cosine, abs=1e-10)
    assert score.exact


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "packed"])
@pytest.mark.parametrize("cell", STEPS)
def test_every_chunk_size_of_every_cell(cell: str, lengths: list[int] | None) -> None:
    p = problem(cell, lengths=lengths)
    full = p.full()
    chunks = lag_sweep(p.run, chunks=tuple(range(1, 13))).chunks
    for k, bias, cosine in zip(chunks.size, chunks.bias, chunks.cosine, strict=True):
        expected = p.chunk(k, k)
        off = float((expected - full).norm() / full.norm())
        assert float(bias) == pytest.approx(off, abs=1e-10)
        along = float(expected @ full / expected.norm() / full.norm())
        assert float(cosine) == pytest.approx(along, abs=1e-10)
    for k in (1, 5, 12):
        check(p, estimators.Chunk(k), p.chunk(k, k))


@pytest.mark.parametrize("cells", [("lstm",), ("elman_tanh", "gru")])
def test_every_pair_of_k1_and_k2(cells: tuple[str, ...]) -> None:
    p = problem(*cells, T=7, B=2)
    for k1, k2 in itertools.product(range(1, 9), range(1, 9)):
        check(p, estimators.Chunk(k1, k2), p.chunk(k1, k2))


def test_windows_are_chunks_of_one_and_tau() -> None:
    p = problem("gru", lengths=LENGTHS)
    for tau in range(1, 14):
        check(p, estimators.Window(tau), p.window(tau))
    assert estimators.Window.beyond(3) == estimators.Window(4)


def test_source_steps_collect_late_steps_only() -> None:
    p = problem("lstm", T=8)
    for k in range(1, 9):
        check(p, estimators.SourceStep(k), p.gradient([(k - 1, 8, range(8))]))


@pytest.mark.parametrize("cell", ["lstm", "peephole_lstm", "coupled_lstm"])
def test_cell_only_detaches_h_between_steps(cell: str) -> None:
    p = problem(cell, T=9)
    leaves = {k: v.clone().requires_grad_() for k, v in p.weights[0].items()}
    state, total = p.initial[0], torch.zeros((), dtype=torch.float64)
    for t in range(9):
        state = STEPS[cell](leaves, p.inputs[t], (state[0].detach(), state[1]))
        total = total + sum((e[t] * part).sum() for e, part in zip(p.direct[0], state, strict=True))
    grads = torch.autograd.grad(total, list(leaves.values()))
    check(p, estimators.CellOnly(), torch.cat([g.flatten() for g in grads]))
    with pytest.raises(NotSupported, match="carries nothing but h"):
        estimate(problem("gru", T=3).run, estimators.CellOnly())


def test_clipping_rescales_and_keeps_the_direction() -> None:
    p = problem("lstm", T=6)
    full = p.full()
    size = float(full.norm())
    check(p, estimators.Clip(size / 4), full / 4)
    check(p, estimators.Clip(size * 2), full)
    window = p.window(2)
    limit = float(window.norm()) / 3
    check(p, estimators.Clip(limit, of=estimators.Window(2)), window / 3)


@pytest.mark.parametrize("cells", [("lstm",), ("gru", "elman_tanh")])
def test_a_walk_with_given_factors(cells: tuple[str, ...]) -> None:
    """The scan behind Bernoulli truncation, with a factor a step, and several masks side by side."""
    p = problem(*cells, T=8, lengths=[8, 3, 6, 1])
    task = task_of(p)
    factors = torch.rand(8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2
    found = scan(task.chain, factors)
    for k in range(3):
        expected = p.gradient([(0, 8, range(8))], factors[:, k])
        gradient = task.layout.split(task.gradient(tuple(part[:, k] for part in found)))
        assert relative(flat(gradient), expected) < 1e-12


def bernoulli_masks(pi: np.ndarray) -> list[tuple[float, torch.Tensor]]:
    """All masks ξ_2 .. ξ_T with their probabilities."""
    masks = []
    for kept in itertools.product([True, False], repeat=len(pi)):
        probability = float(np.prod([p if k else 1 - p for p, k in zip(pi, kept, strict=True)]))
        xi = [1.0, *[1 / p if k else 0.0 for p, k in zip(pi, kept, strict=True)]]
        masks.append((probability, torch.tensor(xi, dtype=torch.float64)))
    return masks


def artbp_masks(T: int, length: float, alpha: float) -> list[tuple[float, torch.Tensor]]:
    """All masks of ARTBP with their chain probabilities."""
    masks = []
    for kept in itertools.product([True, False], repeat=T - 1):
        probability, since, xi = 1.0, 0, [1.0]
        for k in kept:
            since += 1
            cut = (alpha - 1) / ((alpha - 2) * length + since)
            probability *= 1 - cut if k else cut
            xi.append(1 / (1 - cut) if k else 0.0)
            since = since if k else 0
        masks.append((probability, torch.tensor(xi, dtype=torch.float64)))
    return masks


SCHEDULES = {
    "constant": (estimators.Bernoulli(0.7), bernoulli_masks(np.full(6, 0.7))),
    "sequence": (
        estimators.Bernoulli([0.9, 0.5, 1.0, 0.6, 0.8, 0.7]),
        bernoulli_masks(np.array([0.9, 0.5, 1.0, 0.6, 0.8, 0.7])),
    ),
    "artbp": (estimators.Bernoulli(estimators.artbp(2.5)), artbp_masks(7, 2.5, 4.0)),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bernoulli_against_all_masks(schedule: str) -> None:
    """Mean over all 2^(T-1) masks = g; drawn spread within 4 stated standard errors of the enumerated one."""
    estimator, masks = SCHEDULES[schedule]
    p = problem("gru", T=7, B=2, H=2)
    full = p.full()
    assert sum(q for q, _ in masks) == pytest.approx(1, abs=1e-12)
    mean, square = torch.zeros_like(full), 0.0
    for probability, xi in masks:
        if probability == 0:
            continue
        value = p.gradient([(0, 7, range(7))], xi)
        mean = mean + probability * value
        square += probability * float((value - full).square().sum())
    assert relative(mean, full) < 1e-12
    draws = 600
    score = estimate(p.run, estimator, draws=draws)
    sd = math.sqrt(square) / float(full.norm())
    assert abs(score.sd - sd) < 4 * score.sd_error
    assert 0 < score.sd_error < 0.2 * sd
    assert score.bias == 0
    assert score.bias_error == 0
    assert score.draws == draws
    assert relative(flat(score.mean), full) < 1e-12


def test_bernoulli_masks_by_sequence_have_less_spread() -> None:
    """Independent masks a sequence: the variance is the sum of the sequences' own."""
    p = problem("gru", T=6, B=3, H=2)
    variance = 0.0
    for q in p.sequences():
        own = q.full()
        for probability, xi in bernoulli_masks(np.full(5, 0.7)):
            value = q.gradient([(0, 6, range(6))], xi)
            variance += probability * float((value - own).square().sum())
    score = estimate(p.run, estimators.Bernoulli(0.7, shared=False), draws=600)
    sd = math.sqrt(variance) / float(p.full().norm())
    assert abs(score.sd - sd) < 4 * score.sd_error


def test_artbp_stretches_have_the_stated_mean() -> None:
    factors = estimators.Bernoulli(estimators.artbp(20.0)).state_factors(
        4000, torch.Generator().manual_seed(0), (8,)
    )
    cuts = float((factors == 0).double().mean())
    assert 1 / cuts == pytest.approx(20.0, rel=0.06)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "packed"])
def test_uniform_over_all_truncation_points(lengths: list[int] | None) -> None:
    T = 12
    p = problem("lstm", T=T, lengths=lengths)
    full = p.full()
    tails = [p.gradient([(k, T, range(T))]) for k in range(T)] + [torch.zeros_like(full)]
    steps = [tails[k] - tails[k + 1] for k in range(T)]
    values = [sum(steps[i] * (T / (i + 1)) for i in range(k, T)) for k in range(T)]
    task = task_of(p)
    outcomes = [flat(task.layout.split(o.gradient)) for o in estimators.Uniform().outcomes(task)]
    found = outcomes[::-1]
    for value, outcome in zip(values, found, strict=True):
        assert relative(outcome, value) < 1e-10  # type: ignore[arg-type]
    assert relative(sum(found) / T, full) < 1e-12  # type: ignore[arg-type]
    square = sum(float((v - full).square().sum()) for v in values) / T  # type: ignore[union-attr]
    score = estimate(p.run, estimators.Uniform())
    assert score.sd == pytest.approx(math.sqrt(square) / float(full.norm()), rel=1e-10)
    assert score.exact
    assert score.cost == pytest.approx((T + 1) / 2 / T)


ROULETTES = [
    estimators.Roulette("geometric", length=3),
    estimators.Roulette(0.8),
    estimators.Roulette([0.2, 0.1, 0.3, 0.05, 0.05, 0.1, 0.1, 0.1]),
    estimators.Roulette("optimal"),
]


def roulette_variance(tail_squares: torch.Tensor, survival: torch.Tensor) -> float:
    """Σ_{d>=1} (1/P_d - 1/P_{d-1}) |S_d|², exactly. tail_squares (>= D,): |S_d|²; survival (D,): P_d = P(N >= d)."""
    total, before = 0.0, 1.0
    for d in range(1, len(survival)):
        square, now = float(tail_squares[d]), float(survival[d])
        if square > 0:
            if now == 0:
                return float("inf")
            total += (1 / now - 1 / before) * square
        before = now if now > 0 else before
    return total


def expected_cost(costs: torch.Tensor, survival: torch.Tensor) -> float:
    """Σ_d w_d P_d."""
    return float((costs[: len(survival)] * survival).sum())


@pytest.mark.parametrize("losses", [None, [7]], ids=["every_step", "at_the_end"])
@pytest.mark.parametrize("estimator", ROULETTES, ids=lambda e: e.label)
def test_roulette_variance_from_the_tails(
    estimator: estimators.Roulette, losses: list[int] | None
) -> None:
    p = problem("lstm", T=8, losses=losses)
    task = task_of(p)
    full = p.full()
    windows = [torch.zeros_like(full)] + [p.window(tau) for tau in range(1, 9)]
    survival = estimator.survival(task)
    mean, square, total = torch.zeros_like(full), 0.0, 0.0
    for n in range(8):
        probability = float(survival[n]) - (float(survival[n + 1]) if n < 7 else 0.0)
        kept = [(windows[d + 1] - windows[d]) / float(survival[d]) for d in range(n + 1)]
        value = torch.stack(kept).sum(0)
        mean = mean + probability * value
        square += probability * float((value - full).square().sum())
        total += probability
    assert total == pytest.approx(1, abs=1e-12)
    assert relative(mean, full) < 1e-12
    tails = torch.stack([(full - w).square().sum() for w in windows])
    assert roulette_variance(tails, survival) == pytest.approx(square, rel=1e-12)
    score = estimate(p.run, estimator)
    assert score.sd == pytest.approx(math.sqrt(square) / float(full.norm()), rel=1e-9)
    assert score.cost == pytest.approx(expected_cost(lag_costs(task.losses), survival), rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_optimal_roulette_matches_a_numerical_optimum(seed: int) -> None:
    """Tails that also rise (v_d negative), any costs: pooling finds the optimum under P never rising."""
    rng = np.random.default_rng(seed)
    count = 6
    tails = np.append(np.exp(-0.5 * np.arange(count) + 0.6 * rng.standard_normal(count)), 0.0)
    costs = np.sort(rng.uniform(0.2, 1.0, count))[::-1].copy()
    noise = float(rng.uniform(0.5, 2.0)) * math.sqrt(tails[1])
    survival = optimal_survival(torch.tensor(tails), torch.tensor(costs), noise)
    assert float(survival[0]) == 1
    assert bool((survival[1:] <= survival[:-1] + 1e-15).all())

    def price(levels: np.ndarray) -> float:
        whole = torch.tensor(np.append(1.0, levels))
        variance = roulette_variance(torch.tensor(tails), whole)
        return math.log((variance + noise**2) * expected_cost(torch.tensor(costs), whole))

    falling = [
        {"type": "ineq", "fun": lambda levels, d=d: np.append(1.0, levels)[d] - levels[d]}
        for d in range(count - 1)
    ]
    best = min(
        minimize(
            price,
            np.sort(rng.uniform(0.2, 1, count - 1))[::-1],
            method="SLSQP",
            bounds=[(1e-4, 1.0)] * (count - 1),
            constraints=falling,
            options={"maxiter": 500, "ftol": 1e-13},
        ).fun
        for _ in range(5)
    )
    assert price(survival[1:].numpy()) == pytest.approx(best, abs=1e-5)


def test_without_noise_the_optimum_is_full_bptt() -> None:
    survival = optimal_survival(torch.tensor([4.0, 2.0, 1.0, 0.0]), torch.ones(3), 0.0)
    assert torch.equal(survival, torch.ones(3, dtype=torch.float64))


def test_costs_and_memory() -> None:
    p = problem("lstm", T=10, B=2)
    found = {
        s.label: s
        for s in compare_estimators(
            p.run,
            [
                estimators.Full(),
                estimators.Window(4),
                estimators.Window(10),
                estimators.Chunk(4),
                estimators.Chunk(2, 5),
                estimators.SourceStep(4),
                estimators.Bernoulli(0.5),
            ],
        )
    }
    assert found["full"].cost == found["chunk 4"].cost == 1
    assert found["window 4"].cost == pytest.approx(sum(min(4, u) for u in range(1, 11)) / 10)
    assert found["window 10"].cost == 1
    assert found["chunk (2, 5)"].cost == pytest.approx((2 + 4 + 5 + 5 + 5) / 10)
    assert found["source steps >= 4"].cost == pytest.approx(0.7)
    assert found["full"].memory == 1
    assert found["window 4"].memory == found["chunk 4"].memory == pytest.approx(0.4)
    assert 0.1 < found["Bernoulli, p = 0.5"].memory < 0.7
    at_end = problem("lstm", T=10, losses=[9])
    assert estimate(at_end.run, estimators.Window(4)).cost == pytest.approx(0.4)


def test_ranking_needs_the_noise_yardstick() -> None:
    p = problem("lstm", T=10, B=6)
    scores = compare_estimators(
        p.run, [estimators.Full(), estimators.Chunk(3), estimators.Window(2)]
    )
    noise = lag_sweep(p.run).noise / float(p.full().norm())
    for score in scores:
        assert score.noise == pytest.approx(noise, rel=1e-10)
        expected = math.sqrt(score.bias**2 + (score.sd**2 + noise**2) * score.cost)
        assert score.ranking == pytest.approx(expected, rel=1e-10)
    assert [s.ranking for s in scores] == sorted(s.ranking for s in scores)


def test_no_low_cost_discounts_a_bias() -> None:
    """Nine cheap steps of a biased estimator average out spread, and are as biased as one."""
    score = estimate(problem("lstm", T=4).run, estimators.Full())
    for bias in (0.0, 0.2, 3.0):
        for cost in (1e-6, 0.1, 1.0):
            for sd, noise in ((0.0, math.nan), (1.0, 0.5)):
                tried = replace(score, bias=bias, sd=sd, noise=noise, cost=cost)
                assert tried.ranking >= bias


def test_clipped_draws_state_the_error_of_their_bias() -> None:
    p = problem("gru", T=7, B=2, H=2)
    full = p.full()
    limit = float(full.norm())
    square, mean = 0.0, torch.zeros_like(full)
    for probability, xi in bernoulli_masks(np.full(6, 0.7)):
        value = p.gradient([(0, 7, range(7))], xi)
        value = value * min(1.0, limit / float(value.norm()))
        mean = mean + probability * value
        square += probability * float((value - full).square().sum())
    score = estimate(p.run, estimators.Clip(limit, of=estimators.Bernoulli(0.7)), draws=800)
    bias = float((mean - full).norm() / full.norm())
    assert abs(score.bias - bias) < 4 * score.bias_error
    assert score.bias_error > 0
    enumerated = estimate(p.run, estimators.Clip(limit, of=estimators.Uniform()))
    assert enumerated.exact
    assert enumerated.bias > 0


def test_every_estimator_is_in_the_registry() -> None:
    classes = [getattr(estimators, name) for name in estimators.__all__]
    found = {c for c in classes if isinstance(c, type) and hasattr(c, "outcomes")}
    assert set(ESTIMATORS.values()) == found
    assert default_sizes(20) == (1, 2, 3, 4, 6, 8, 12, 16, 20)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: estimators.Window(0), "tau is 0"),
        (lambda: estimators.Chunk(0), "k1 is 0"),
        (lambda: estimators.Chunk(2, 0), "k2 is 0"),
        (lambda: estimators.SourceStep(0), "K is 0"),
        (lambda: estimators.Bernoulli(0.0), "keep is 0.0"),
        (lambda: estimators.Bernoulli([0.5, 1.5]), "keep is 1.5"),
        (lambda: estimators.artbp(1.0), "length 1.0"),
        (lambda: estimators.Roulette("best"), "'best'"),
        (lambda: estimators.Roulette(1.5), "ratio is 1.5"),
        (lambda: estimators.Roulette([0.5, 0.4]), "add up to 0.9"),
        (lambda: estimators.Clip(0.0), "max_norm is 0.0"),
        (lambda: estimate(problem("gru", T=3).run, estimators.Bernoulli([0.5])), "1 probabilities"),
        (lambda: estimate(problem("gru", T=3).run, estimators.Roulette([1.0])), "for 3 lags"),
        (lambda: estimate(problem("gru", T=3).run, estimators.Full(), draws=0), "draws is 0"),
    ],
)
def test_mistakes_are_told(make: object, word: str) -> None:
    with pytest.raises(BadArgument, match=word):
        make()  # type: ignore[operator]
