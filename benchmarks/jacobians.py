"""How fast are Jacobians written out, against vmap(jacrev) and a loop, and Lyapunov spectra, against naive numpy?

    python benchmarks/jacobians.py [--steps 100] [--units 128] [--batch 1] [--trajectory 2000] [--rounds 15]

All rivals take turns in one process on the same numbers, in an order that moves on by one each round, and their results
are compared before any time is taken. A ratio is taken in each round; its median is held against the limit, and the
exit status is 1 if one is missed. The times are the medians of the rounds.

With one thread and with all of them. `fill` is the roofline: the time of filling a new tensor of the result's size with
a constant, which no way of writing J_t out can beat; "fill / ours" is how much of our time that is, and "jacrev / fill"
the best ratio that could be had. Page faults are counted because for the smallest cell they can cost more than the
arithmetic: the rivals' memory is torch's, ours is numpy's, which asks for huge pages. The allocator keeps or gives back
what is freed as it likes, so the same call costs 0 or thousands of faults; MALLOC_MMAP_THRESHOLD_=1048576 in the
environment makes all memory fresh for everybody.

The exponents of both start from one frame, so they agree to rounding however short the trajectory is. With k = H ours
also takes the log-determinant of every J_t, the proof that the numpy loop does not give.
"""

from __future__ import annotations

import argparse
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rnndiag
from benchmarks.promises import PROMISES, tell
from rnndiag.engine.cells import find_cell
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra.frame import TangentFrame
from rnndiag.engine.unroll import unroll

PROMISED_AT = {"steps": 100, "units": 128, "batch": 1}
"""The sizes that the limits speak of."""


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


class Turns:
    """Seconds and page faults of each rival in each round, after two rounds that do not count."""

    def __init__(self, rivals: dict[str, Callable[[], Any]], rounds: int) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in rivals}
        self.faults: dict[str, list[float]] = {name: [] for name in rivals}
        names = list(rivals)
        for number in range(rounds + 2):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                faults, begin = page_faults(), time.perf_counter()
                rivals[name]()
                if number > 1:
                    self.seconds[name].append(time.perf_counter() - begin)
                    self.faults[name].append(page_faults() - faults)

    def ratios(self, slow: str, fast: str) -> list[float]:
        """slow / fast of every round."""
        return [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]


def page_faults() -> int:
    """Those of this process so far; 0 on a system that does not say."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return 0
    return getrusage(RUSAGE_SELF).ru_minflt


def show(name: str, values: list[float], unit: str, whole: bool) -> bool:
    """Print and tell the rounds of one number; whether its promise is kept, if one is made."""
    held = tell(name, values, unit=unit, whole=whole)
    limit = f"   limit {PROMISES[name].text}" if name in PROMISES else ""
    verdict = "" if held is None else ": holds" if held else ": MISSED"
    if not whole:
        limit, verdict = "", ""
    spread = f"{min(values):.4g} .. {max(values):.4g}"
    print(f"{name:58s} {median(values):10.4g} {unit:9s} {spread:20s}{limit}{verdict}", flush=True)
    return held is not False


def written_out(cell: str, args: argparse.Namespace, threads: int, promised: bool) -> bool:
    """All J_t of one layer run: ours, one vmap(jacrev) over time and batch, and a loop over time of the same."""
    run = draw_run(cell, args.steps, args.batch, args.units, torch.float32)
    before = torch.cat(run.previous(), -1)
    single = jacrev(lambda state, x: STEPS[cell](run, x, state))
    all_steps, one_step = vmap(vmap(single)), vmap(single)

    def loop() -> Tensor:
        return torch.stack([one_step(s, x) for s, x in zip(before, run.inputs, strict=True)])

    rivals: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: rnndiag.jacobians(run),
        "jacrev": lambda: all_steps(before, run.inputs),
        "loop": loop,
    }
    ours, *others = (call() for call in rivals.values())
    for found in others:
        assert found.dtype == ours.dtype, "the rivals work in another precision"
        assert torch.allclose(ours, found, rtol=0, atol=1e-5), "the rivals disagree"
    shape = ours.shape
    del ours, others, found
    rivals["fill"] = lambda: torch.empty(shape).fill_(1.0)
    turns = Turns(rivals, args.rounds)
    whole = all(getattr(args, name) == size for name, size in PROMISED_AT.items())
    where = f"{cell}, {threads} thread{'s' if threads > 1 else ''}"
    for name in rivals:
        milliseconds = [1e3 * value for value in turns.seconds[name]]
        show(f"jacobians, {where}: {name}", milliseconds, "ms", whole)
        show(f"jacobians, {where}: {name}, page faults", turns.faults[name], "", whole)
    for slow, fast in (("loop", "ours"), ("jacrev", "fill"), ("fill", "ours")):
        show(f"jacobians, {where}: {slow} / {fast}", turns.ratios(slow, fast), "x", whole)
    ratios = turns.ratios("jacrev", "ours")
    held = show(f"jacobians, {where}: jacrev / ours", ratios, "x", whole)
    if promised:
        held = show(f"jacobians over vmap(jacrev), {cell}", ratios, "x faster", whole)
    return held or not whole


def naive_exponents(run: LayerRun, k: int, warmup: int) -> np.ndarray:
    """What one writes first: J_t = diag(1 - h²) W in numpy and a QR each step, one sequence after the other."""
    weight = run.weights["weight_hh"].numpy()
    start = TangentFrame.random((1, k, run.S), torch.float64, run.device).vectors[0].mT.numpy()
    total, counted = np.zeros(k), 0
    for states in run.states[0].numpy().swapaxes(0, 1):
        frame = start
        for t, h in enumerate(states):
            frame, upper = np.linalg.qr(((1 - h * h)[:, None] * weight) @ frame)
            if t >= warmup:
                total += np.log(np.abs(np.diag(upper)))
                counted += 1
    return total / counted


def spectra(k: int, batch: int, args: argparse.Namespace) -> None:
    """The k largest exponents of an RNN, float64: ours against the naive loop."""
    run = draw_run("elman_tanh", args.trajectory, batch, args.units, torch.float64)
    warmup = args.trajectory // 10
    ours = rnndiag.lyapunov(run, k, warmup)
    naive = naive_exponents(run, k, warmup)
    apart = float((ours.exponents - torch.from_numpy(np.sort(naive)[::-1].copy())).abs().max())
    assert apart < 1e-6, f"the exponents are {apart} apart"
    turns = Turns(
        {
            "ours": lambda: rnndiag.lyapunov(run, k, warmup),
            "naive": lambda: naive_exponents(run, k, warmup),
        },
        max(3, args.rounds // 3),
    )
    name, whole = f"lyapunov, k = {k}, B = {batch}", args.trajectory >= 2000
    show(f"{name}: ours", turns.seconds["ours"], "s", whole)
    show(f"{name}: naive numpy / ours", turns.ratios("naive", "ours"), "x", whole)
    show(f"{name}: largest difference", [apart], "", whole)
    show(f"{name}: longest interval", [float(ours.longest_interval)], "steps", whole)
    show(f"{name}: error of the interval", [ours.interval_error], "", whole)


def products(cell: str, args: argparse.Namespace) -> None:
    """All singular values of the product of all Jacobians of one sequence: one QR a step."""
    run = draw_run(cell, args.steps, 1, args.units, torch.float32)
    begin = time.perf_counter()
    found = rnndiag.jacobian_products(run, [args.steps], anchors=[0])
    seconds = time.perf_counter() - begin
    assert found.log_singular_values.isfinite().all()
    show(f"product of Jacobians, {cell}: a step", [1e3 * seconds / args.steps], "ms", True)


def main() -> int:
    """Measure, print, and say whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=PROMISED_AT["steps"])
    parser.add_argument("--units", type=int, default=PROMISED_AT["units"])
    parser.add_argument("--batch", type=int, default=PROMISED_AT["batch"])
    parser.add_argument("--trajectory", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    most, kept = torch.get_num_threads(), []
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        kept += [written_out(cell, args, threads, promised=threads == most) for cell in STEPS]
    for cell in STEPS:
        products(cell, args)
    for k, batch in ((10, 1), (10, 16), (args.units, 1)):
        spectra(k, batch, args)
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
