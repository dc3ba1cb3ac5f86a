"""How do time and memory of a recorded step grow with T, B, H and the number of layers?

    python benchmarks/growth.py [--axes T B H layers] [--rounds 3] [--quick]

A recorded step is the training step with capture, adjoints, the norms of every parameter's contributions and the proof.
Plain and recorded steps take turns; of each the fastest of the rounds is fitted. Memory is what torch's CPU allocator
handed out at once during the recorded step, over the start (on Linux and elsewhere alike). The exponent is the slope on
log-log axes over the upper half of the sizes, where what is small beside them has faded; the expected one stands beside
it. What the lag sweep costs is in benchmarks/truncation.py (`growth`).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import linear_regression

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own lines; read as torch is loaded

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rnndiag
from benchmarks.promises import tell

CLASSES = 10


@dataclass(frozen=True)
class Shape:
    """Sizes of one training step."""

    T: int
    B: int
    H: int
    layers: int = 1


@dataclass(frozen=True)
class Axis:
    """What grows, from a shape on, and how cost and memory are expected to grow."""

    start: Shape
    sizes: tuple[int, ...]
    time: str
    memory: str


AXES = {
    "T": Axis(
        Shape(0, 8, 64),
        (50, 200, 1000, 2500, 5000),
        "1: a step after the other",
        "1: δ and a_hh of every step",
    ),
    "B": Axis(
        Shape(100, 0, 64),
        (8, 32, 128, 256),
        "1, towards 2 where Gram products of samples are taken",
        "1",
    ),
    "H": Axis(
        Shape(50, 8, 0),
        (32, 128, 256, 512, 1024),
        "2: products with W_hh",
        "1, towards 2 where the weights are larger than the states",
    ),
    "layers": Axis(
        Shape(100, 16, 64, 0),
        (1, 2, 4, 8),
        "1",
        "1, less what one layer's analysis frees for the next",
    ),
}
QUICK = {"T": (50, 200, 400), "B": (8, 16, 32), "H": (32, 64, 128), "layers": (1, 2)}


class Step:
    """One model and its training step, plain and recorded."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        self.rnn = nn.LSTM(shape.H, shape.H, shape.layers)
        self.head = nn.Linear(shape.H, CLASSES)
        self.x = torch.randn(shape.T, shape.B, shape.H)
        self.y = torch.randint(CLASSES, (shape.T * shape.B,))

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.rnn(self.x)[0]).flatten(0, 1), self.y)

    def plain(self) -> None:
        self.rnn.zero_grad()
        self.loss().backward()

    def recorded(self) -> None:
        self.rnn.zero_grad()
        with rnndiag.probe(self.rnn) as probe:
            self.loss().backward()
        runs = probe.layer_runs
        analyses = [(a, rnndiag.contribution_norms(a)) for a in map(rnndiag.adjoints, runs)]
        proof = rnndiag.prove(runs, analyses)
        if proof.verdict != "exact":
            raise SystemExit(f"the recorded step is {proof.verdict}: {'; '.join(proof.reasons)}")


@dataclass(frozen=True)
class Cost:
    """What one shape costs."""

    plain: float
    recorded: float
    memory: int
    memory_plain: int


def allocated(step: Callable[[], None]) -> int:
    """Most bytes that torch's CPU allocator had handed out at once, over the start."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        step()
    live = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def measure(shape: Shape, rounds: int) -> Cost:
    """Interleaved times and both peaks of one shape."""
    step = Step(shape)
    taken: dict[str, list[float]] = {"plain": [], "recorded": []}
    memory_plain, memory = allocated(step.plain), allocated(step.recorded)
    for _ in range(rounds):
        for name, call in (("plain", step.plain), ("recorded", step.recorded)):
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return Cost(min(taken["plain"]), min(taken["recorded"]), memory, memory_plain)


def first_fitted(sizes: tuple[int, ...]) -> int:
    """Where the upper half of the sizes begins: two sizes at least."""
    return min(len(sizes) // 2, len(sizes) - 2)


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """Slope on log-log axes over the upper half of the sizes."""
    upper = slice(first_fitted(sizes), None)
    logs = [[math.log(v) for v in given[upper]] for given in (sizes, values)]
    return linear_regression(*logs).slope


def along(name: str, sizes: tuple[int, ...], rounds: int) -> None:
    """One axis: its rows and its exponents."""
    axis = AXES[name]
    fixed = " ".join(
        f"{key}={value}" for key, value in vars(axis.start).items() if key != name and value
    )
    print(f"\n### {name} grows, {fixed}\n")
    print(
        f"| {name} | plain, ms | recorded, ms | recorded / plain | memory, MB | of a plain step |"
    )
    print("|--:|--:|--:|--:|--:|--:|")
    costs = []
    for size in sizes:
        cost = measure(replace(axis.start, **{name: size}), rounds)
        costs.append(cost)
        print(
            f"| {size} | {1e3 * cost.plain:.1f} | {1e3 * cost.recorded:.1f} | {cost.recorded / cost.plain:.2f} | "
            f"{cost.memory / 2**20:.1f} | {cost.memory_plain / 2**20:.1f} |",
            flush=True,
        )
    columns = {
        "time, plain": [cost.plain for cost in costs],
        "time, recorded": [cost.recorded for cost in costs],
        "memory, recorded": [float(cost.memory) for cost in costs],
    }
    found = {kind: exponent(sizes, values) for kind, values in columns.items()}
    print(
        f"\nexponents from {name} = {sizes[first_fitted(sizes)]} on: "
        f"plain time {found['time, plain']:.2f}, recorded time {found['time, recorded']:.2f} (expected {axis.time}), "
        f"recorded memory {found['memory, recorded']:.2f} (expected {axis.memory})"
    )
    for kind in ("time, recorded", "memory, recorded"):
        tell(f"growth of {kind}, over {name}", found[kind], unit="exponent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller sizes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.rounds = 2
    print(f"LSTM, float32, {options.threads} threads, the fastest of {options.rounds} rounds")
    for name in options.axes:
        along(name, QUICK[name] if options.quick else AXES[name].sizes, options.rounds)


if __name__ == "__main__":
    main()
