"""Jacobians written out against vmap(jacrev) and a per-step loop; Lyapunov spectra against a naive numpy QR loop.

    python benchmarks/jacobians.py [--steps 100] [--units 128] [--batch 1] [--trajectory 2000] [--rounds 9]

All rivals take turns in one process, on the same numbers, and the results are compared before any time is printed. The
ratio that a limit is held against is of the fastest rounds of both, which is what they cost without the neighbours and
with memory at hand; the median of the rounds' own ratios, with all that disturbed them, stands beside it.
Each limit is a promise; the exit status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, vmap
from torch.nn.functional import linear

import rnndiag
from rnndiag.engine.cells import find_cell
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.unroll import unroll

LIMITS = {
    "elman_tanh: jacrev / ours": 10.0,
    "lstm: jacrev / ours": 5.0,
    "gru: jacrev / ours": 5.0,
}
"""At least this many times faster."""

Numbers = dict[str, float]


def rnn_step(run: LayerRun, x: Tensor, h: Tensor) -> Tensor:
    """One step of one sequence as its user would write it: x (I,), h (H,)."""
    w = run.weights
    return torch.tanh(linear(x, w["weight_ih"], w["bias_ih"]) + linear(h, w["weight_hh"]))


def lstm_step(run: LayerRun, x: Tensor, state: Tensor) -> Tensor:
    """One step of one sequence; the state is (h, c) side by side."""
    w, (h, c) = run.weights, state.chunk(2)
    a = linear(x, w["weight_ih"], w["bias_ih"]) + linear(h, w["weight_hh"])
    i, f, g, o = a.chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return torch.cat([o.sigmoid() * c.tanh(), c])


def gru_step(run: LayerRun, x: Tensor, h: Tensor) -> Tensor:
    """One step of one sequence, in torch's convention."""
    w = run.weights
    r_x, z_x, n_x = linear(x, w["weight_ih"], w["bias_ih"]).chunk(3)
    r_h, z_h, n_h = linear(h, w["weight_hh"]).chunk(3)
    n = torch.tanh(n_x + (r_x + r_h).sigmoid() * n_h)
    z = (z_x + z_h).sigmoid()
    return (1 - z) * n + z * h


STEPS = {"elman_tanh": rnn_step, "lstm": lstm_step, "gru": gru_step}


def draw_run(cell: str, steps: int, batch: int, units: int, dtype: torch.dtype) -> LayerRun:
    """A run with random weights at torch's scale times 2, so that the states move."""
    torch.manual_seed(0)
    known = find_cell(cell)
    rows, bound = len(known.gates) * units, 2 / units**0.5
    weights = {
        "weight_ih": bound * (2 * torch.rand(rows, units, dtype=dtype) - 1),
        "weight_hh": bound * (2 * torch.rand(rows, units, dtype=dtype) - 1),
        "bias_ih": bound * (2 * torch.rand(rows, dtype=dtype) - 1),
    }
    inputs = torch.randn(steps, batch, units, dtype=dtype)
    direct = tuple(torch.zeros(steps, batch, units, dtype=dtype) for _ in known.parts)
    return unroll(known, weights, inputs, direct)


def in_turns(rivals: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each rival in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for counted in range(rounds + 1):
        for name, call in rivals.items():
            begin = time.perf_counter()
            call()
            if counted:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratios(name: str, slow: list[float], fast: list[float]) -> Numbers:
    """slow / fast of the fastest rounds, and the median over the rounds of each round's own."""
    return {
        name: min(slow) / min(fast),
        f"{name}, median": median(a / b for a, b in zip(slow, fast, strict=True)),
    }


def written_out(cell: str, steps: int, batch: int, units: int, rounds: int) -> Numbers:
    """All J_t of one layer run: ours, one vmap(jacrev) over time and batch, and a loop over time of the same."""
    run = draw_run(cell, steps, batch, units, torch.float32)
    before = torch.cat(run.previous(), -1)
    single = jacrev(lambda state, x: STEPS[cell](run, x, state))
    all_steps, one_step = vmap(vmap(single)), vmap(single)

    def loop() -> Tensor:
        return torch.stack([one_step(s, x) for s, x in zip(before, run.inputs, strict=True)])

    rivals = {
        "ours": lambda: rnndiag.jacobians(run),
        "jacrev": lambda: all_steps(before, run.inputs),
        "loop": loop,
    }
    ours, other, slow = (call() for call in rivals.values())
    for found in (other, slow):
        assert torch.allclose(ours, found, rtol=0, atol=1e-5), "the rivals disagree"
    del ours, other, slow
    seconds = in_turns(rivals, rounds)
    return {
        f"{cell}: ours, ms": 1e3 * min(seconds["ours"]),
        **ratios(f"{cell}: jacrev / ours", seconds["jacrev"], seconds["ours"]),
        **ratios(f"{cell}: per-step loop / ours", seconds["loop"], seconds["ours"]),
    }


def naive_exponents(run: LayerRun, k: int, warmup: int) -> np.ndarray:
    """What one writes first: J_t = diag(1 - h²) W in numpy and a QR each step, one sequence after the other."""
    weight = run.weights["weight_hh"].numpy()
    total, counted = np.zeros(k), 0
    for states in run.states[0].numpy().swapaxes(0, 1):
        frame = np.linalg.qr(np.random.default_rng(0).standard_normal((len(weight), k)))[0]
        for t, h in enumerate(states):
            frame, upper = np.linalg.qr(((1 - h * h)[:, None] * weight) @ frame)
            if t >= warmup:
                total += np.log(np.abs(np.diag(upper)))
                counted += 1
    return total / counted


def spectra(k: int, steps: int, batch: int, units: int, rounds: int) -> Numbers:
    """The k largest exponents of an RNN, float64: ours against the naive loop."""
    run = draw_run("elman_tanh", steps, batch, units, torch.float64)
    warmup = steps // 10
    ours = rnndiag.lyapunov(run, k, warmup)
    naive = naive_exponents(run, k, warmup)
    apart = float((ours.exponents - torch.from_numpy(np.sort(naive)[::-1].copy())).abs().max())
    assert apart < 0.05, f"the exponents are {apart} apart"
    rivals = {
        "ours": lambda: rnndiag.lyapunov(run, k, warmup),
        "naive": lambda: naive_exponents(run, k, warmup),
    }
    seconds = in_turns(rivals, rounds)
    name = f"lyapunov k={k} B={batch}"
    return {
        f"{name}: ours, s": min(seconds["ours"]),
        **ratios(f"{name}: naive numpy / ours", seconds["naive"], seconds["ours"]),
        f"{name}: largest difference": apart,
        f"{name}: longest interval, steps": ours.longest_interval,
        f"{name}: interval error": ours.interval_error,
    }


def products(cell: str, steps: int, units: int) -> Numbers:
    """All singular values of the product of `steps` Jacobians of one sequence: one QR a step."""
    run = draw_run(cell, steps, 1, units, torch.float32)
    begin = time.perf_counter()
    found = rnndiag.jacobian_products(run, [steps], anchors=[0])
    seconds = time.perf_counter() - begin
    assert found.log_singular_values.isfinite().all()
    return {f"{cell}: product of {steps} steps, ms a step": 1e3 * seconds / steps}


def main() -> int:
    """Measure, print, and say whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--trajectory", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    args = parser.parse_args()
    numbers: Numbers = {}
    for cell in STEPS:
        numbers |= written_out(cell, args.steps, args.batch, args.units, args.rounds)
        numbers |= products(cell, args.steps, args.units)
    for k in (10, args.units):
        for batch in (1, 16) if k == 10 else (1,):
            numbers |= spectra(k, args.trajectory, batch, args.units, rounds=3)
    for name, value in numbers.items():
        limit = LIMITS.get(name)
        verdict = ""
        if limit is not None:
            verdict = f"   limit {limit:g}: {'holds' if value >= limit else 'MISSED'}"
        print(f"{name:46s} {value:12.4g}{verdict}")
    if args.json:
        given = {"arguments": vars(args), "numbers": numbers}
        args.json.write_text(json.dumps(given, default=str, indent=1) + "\n")
    return int(any(numbers[name] < limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
