"""What does each analysis take on this device: absolute times, kernels, peak memory, share of host time?

    python benchmarks/device.py [--device cpu|cuda] [--cell lstm] [--steps 200] [--batch 32] [--hidden 128] [--quick]

The analyses take turns in one process; times are taken between synchronisations. On a GPU kernels are those of one call
as the profiler saw them, and the host's share is the part of the call's time in which none of them ran: what Python and
the launching cost. Memory is the most that torch's allocator of the device had handed out at once, over the start.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own lines; read as torch is loaded

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rnndiag
from benchmarks.promises import tell

CELLS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CLASSES = 10


class Work:
    """One layer with a head and a loss on every step, on a device."""

    def __init__(self, cell: str, steps: int, batch: int, hidden: int, device: str) -> None:
        torch.manual_seed(0)
        self.rnn = CELLS[cell](hidden, hidden, device=device)
        self.head = nn.Linear(hidden, CLASSES, device=device)
        self.x = torch.randn(steps, batch, hidden, device=device)
        self.y = torch.randint(CLASSES, (steps * batch,), device=device)
        self.run = self.captured().layer_runs[0]

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.rnn(self.x)[0]).flatten(0, 1), self.y)

    def plain(self) -> None:
        self.rnn.zero_grad()
        self.loss().backward()

    def captured(self) -> rnndiag.probe:
        self.rnn.zero_grad()
        with rnndiag.probe(self.rnn) as probe:
            self.loss().backward()
        return probe

    def recorded(self) -> None:
        runs = self.captured().layer_runs
        analyses = [(a, rnndiag.contribution_norms(a)) for a in map(rnndiag.adjoints, runs)]
        proof = rnndiag.prove(runs, analyses)
        if proof.verdict != "exact":
            raise SystemExit(f"the recorded step is {proof.verdict}: {'; '.join(proof.reasons)}")

    def calls(self) -> dict[str, Callable[[], object]]:
        """What is timed."""
        return {
            "plain training step": self.plain,
            "recorded step (capture, adjoints, norms, proof)": self.recorded,
            "adjoints": lambda: rnndiag.adjoints(self.run),
            "lag sweep, default sampling": lambda: rnndiag.lag_sweep(self.run),
            "lag sweep, every window": lambda: rnndiag.lag_sweep(self.run, budget=None, chunks=()),
            "Jacobians, 8 sequences": lambda: rnndiag.jacobians(self.run.select(range(8))),
            "Lyapunov spectrum, k = 10": lambda: rnndiag.lyapunov(self.run.select(range(2)), 10),
        }


@dataclass(frozen=True)
class Seen:
    """What the profiler and the allocator saw of one call."""

    kernels: int
    busy: float
    """Seconds in which the device ran them."""
    peak: int


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def watched(call: Callable[[], object], device: str) -> Seen:
    """One call under the profiler."""
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with profile(activities=activities, profile_memory=not on_gpu) as seen:
        call()
        synchronize(device)
    if on_gpu:
        kernels = [e for e in seen.events() if e.device_type == DeviceType.CUDA]
        busy = sum(e.time_range.elapsed_us() for e in kernels) / 1e6
        return Seen(len(kernels), busy, torch.cuda.max_memory_allocated() - before)
    live = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return Seen(0, 0.0, peak)


def table(cell: str, work: Work, device: str, rounds: int) -> None:
    """One cell's rows."""
    calls = work.calls()
    seen = {name: watched(call, device) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(timed(call, device))
    for name, times in taken.items():
        ms = [1e3 * one for one in times]
        told = seen[name]
        host = max(0.0, 1 - told.busy / min(times))
        on_gpu = f"{told.kernels} | {host:.0%}" if device == "cuda" else "– | –"
        peak = told.peak / 2**20
        print(
            f"| {cell} | {name} | {min(ms):.1f} | {median(ms):.1f} | {max(ms):.1f} | {peak:.0f} | {on_gpu} |",
            flush=True,
        )
        tell(f"{cell} on {device}: {name}", ms, unit="ms")
        tell(f"{cell} on {device}: {name}, peak memory", peak, unit="MB")
        if device == "cuda":
            tell(f"{cell} on {device}: {name}, kernels", told.kernels, unit="kernels")
            tell(f"{cell} on {device}: {name}, host share", host, unit="of the time")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cell", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="an LSTM, T=40, H=64, three rounds")
    options = parser.parse_args()
    if options.quick:
        options.cell, options.steps, options.hidden, options.rounds = ["lstm"], 40, 64, 3
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no CUDA device here.", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    name = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} threads"
    )
    print(
        f"{options.device} ({name}), T={options.steps} B={options.batch} H={options.hidden}, float32\n"
    )
    print("| cell | work | ms: min | median | max | peak memory, MB | kernels | host share |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for cell in options.cell:
        work = Work(cell, options.steps, options.batch, options.hidden, options.device)
        table(cell, work, options.device, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
