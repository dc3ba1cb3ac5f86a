"""How exact are the numbers: how far from slow references, enumerations and known answers?

    python benchmarks/exactness.py [--quick]

Every line is a largest error; the references are the tests' own (tests/reference.py and its like), written from the
definitions and sharing no code with rnndiag. The tests hold the same on many more shapes; here the numbers are shown.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / part) for part in ("", "truncation", "spectra"))]

import naive  # noqa: E402 - beside the tests
from hand_made import jacobians_by_jacrev, linear_run, orthogonal, trained_run  # noqa: E402
from reference import relative  # noqa: E402

import rnndiag  # noqa: E402
from benchmarks.promises import PROMISES, tell  # noqa: E402
from rnndiag import estimators  # noqa: E402
from rnndiag.engine.cells import find_cell  # noqa: E402
from rnndiag.engine.unroll import unroll  # noqa: E402

MODULES: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
CELLS = ("elman_tanh", "lstm", "gru")


def residual(dtype: torch.dtype, steps: int) -> float:
    """|Σ_t g_t - G| / Σ_t |g_t|, the worst of two layers, both directions, every torch cell."""
    worst = 0.0
    for kind in MODULES.values():
        torch.manual_seed(0)
        model = kind(4, 16, 2, bidirectional=True, dtype=dtype)
        x = torch.randn(steps, 4, 4, dtype=dtype)
        with rnndiag.probe(model) as probe:
            model(x)[0].square().mean().backward()
        (proof,) = probe.proofs
        assert proof.verdict == "exact", proof.reasons
        worst = max(worst, proof.worst)
    return worst


def windows(full_size: bool) -> float:
    """Every window against loops with detach at the right places, two layers, all torch cells."""
    errors = []
    for cell in CELLS:
        p = naive.problem(cell, cell, T=12 if full_size else 5)
        for tau in range(1, p.T + 1):
            found = rnndiag.estimate(p.runs, estimators.Window(tau))
            errors.append(relative(naive.flat(found.mean), p.window(tau)))
    return max(errors)


def contribution_error() -> float:
    """Every step's contribution to W_hh against autograd on a copy of the weight a step."""
    worst = 0.0
    for cell in CELLS:
        run = naive.problem(cell, T=12).run
        weights = [run.weights["weight_hh"].clone().requires_grad_() for _ in range(run.T)]
        state, loss = run.initial, torch.zeros((), dtype=torch.float64)
        for t, weight in enumerate(weights):
            state = naive.STEPS[cell]({**run.weights, "weight_hh": weight}, run.inputs[t], state)
            loss = loss + sum((e[t] * s).sum() for e, s in zip(run.direct, state, strict=True))
        expected = torch.stack(torch.autograd.grad(loss, weights))
        worst = max(worst, relative(rnndiag.contributions(run, "weight_hh"), expected))
    return worst


def all_masks() -> float:
    """The mean over all 2^(T-1) Bernoulli masks, by loops, against the full gradient that rnndiag gives."""
    p, pi = naive.problem("lstm", T=6), 0.7
    mean = torch.zeros_like(p.full())
    for kept in product((True, False), repeat=p.T - 1):
        probability = math.prod(pi if one else 1 - pi for one in kept)
        xi = [1 / pi if one else 0.0 for one in kept]
        factors = torch.tensor([1.0, *xi], dtype=torch.float64)
        mean = mean + probability * p.gradient([(0, p.T, range(p.T))], factors)
    return relative(naive.flat(rnndiag.estimate(p.run, estimators.Bernoulli(pi)).mean), mean)


def roulette() -> float:
    """The spread of Russian roulette from its tails against all its outcomes, each by loops."""
    p, stop = naive.problem("lstm", T=8), 0.3
    full = p.full()
    tails = [full - (p.window(tau) if tau else torch.zeros_like(full)) for tau in range(p.T + 1)]
    survival = [(1 - stop) ** d for d in range(p.T)]
    square = 0.0
    for n in range(p.T):
        chance = survival[n] - (survival[n + 1] if n + 1 < p.T else 0.0)
        kept = [(tails[d] - tails[d + 1]) / survival[d] for d in range(n + 1)]
        square += chance * float((torch.stack(kept).sum(0) - full).square().sum())
    found = rnndiag.estimate(p.run, estimators.Roulette(1 - stop)).sd
    return abs(found / (math.sqrt(square) / float(full.norm())) - 1)


def jacobian_error() -> float:
    """J_t against torch.func.jacrev of the reference's step."""
    worst = 0.0
    for cell in CELLS:
        run = naive.problem(cell, T=6).run
        worst = max(worst, float((rnndiag.jacobians(run) - jacobians_by_jacrev(run)).abs().max()))
    return worst


def far_profile(full_size: bool) -> float:
    """ln of the profile of W = a x orthogonal against d ln a, down to 1e-300 and beyond."""
    steps, a = (300, 0.05) if full_size else (60, 1e-5)
    direct = torch.zeros(steps, 1, 4, dtype=torch.float64)
    direct[-1] = 1.0
    weights = {"weight_ih": torch.eye(4, dtype=torch.float64), "weight_hh": a * orthogonal(4)}
    run = unroll(find_cell("linear"), weights, torch.zeros_like(direct), (direct,))
    log = rnndiag.lag_sweep(run, budget=None, chunks=()).profile.log
    expected = math.log(a) * torch.arange(steps, dtype=torch.float64)
    assert float(expected[-1]) < math.log(1e-290)
    return float((log - expected).abs().max() / -expected[-1])


def logistic() -> float:
    """|λ - ln 2| of 4x(1-x), in its own standard errors."""
    starts = torch.rand(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = rnndiag.lyapunov_of_map(lambda x: 4 * x * (1 - x), starts, steps=500)
    return abs(float(found.exponents) - math.log(2)) / float(found.standard_error)


def henon_sum() -> float:
    """|Σ λ - ln 0.3| of the Hénon map."""

    def henon(x: Tensor) -> Tensor:
        return torch.stack([1 - 1.4 * x[..., 0] ** 2 + x[..., 1], 0.3 * x[..., 0]], -1)

    start = torch.tensor([[0.1, 0.1]], dtype=torch.float64)
    found = rnndiag.lyapunov_of_map(henon, start, steps=1500)
    return abs(float(found.exponents.sum()) - math.log(0.3))


def log_det() -> float:
    """Σ λ against the mean of log|det J| on a net that has learnt for a while."""
    return rnndiag.lyapunov(trained_run("GRU")).log_det_residual


def long_product() -> float:
    """ln of the size of a product of 5,000 Jacobians of 1.5 x orthogonal, against 5,000 ln 1.5."""
    found = rnndiag.jacobian_products(linear_run(1.5 * orthogonal(4), 5000), [5000], anchors=[0])
    expected = 5000 * math.log(1.5)
    return float((found.log_singular_values - expected).abs().max()) / expected


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter sequences")
    full_size = not parser.parse_args().quick
    torch.set_num_threads(1)
    errors: dict[str, Callable[[], float]] = {
        "sum law, float64": lambda: residual(torch.float64, 200 if full_size else 40),
        "sum law, float32": lambda: residual(torch.float32, 200 if full_size else 40),
        "contributions against autograd": contribution_error,
        "windows against loops with detach": lambda: windows(full_size),
        "mean over all Bernoulli masks": all_masks,
        "roulette's spread against all outcomes": roulette,
        "Jacobians against jacrev": jacobian_error,
        "log profile of a x orthogonal, to 1e-300": lambda: far_profile(full_size),
        "logistic map: λ - ln 2": logistic,
        "Hénon map: Σ λ - ln 0.3": henon_sum,
        "Σ λ - mean log|det J|, GRU": log_det,
        "product of 5,000 Jacobians": long_product,
    }
    missed = 0
    for name, measure in errors.items():
        value = measure()
        held = tell(name, value, whole=full_size)
        missed += held is False
        print(f"{name:44s} {value:9.1e}   {PROMISES[name].text}{'' if held else '   MISSED'}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
