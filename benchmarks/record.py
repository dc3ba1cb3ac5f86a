"""What does a recorded training step cost: capture, adjoints, contribution norms of every parameter, the proof?

Run: python benchmarks/record.py [--cell lstm gru rnn] [--steps 200] [--batch 32] [--hidden 128] [--threads 2]

Plain, recorded and naive steps are interleaved in one process; the ratios are of medians. The naive step is the loop
that people write by hand: torch's cell unrolled in Python with the gradient of every state retained. Memory is what
torch's allocator handed out (by the profiler), as extra over the plain step and against what its autograd graph holds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

os.environ.setdefault(
    "KINETO_LOG_LEVEL", "99"
)  # the profiler's own log lines; read as torch is loaded

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rnndiag
from benchmarks.promises import PROMISES, tell
from rnndiag.engine import cpu_buffers as pages
from rnndiag.engine.adjoints import adjoints
from rnndiag.engine.contributions import contribution_norms

CELLS: dict[str, tuple[type[nn.RNNBase], type[nn.RNNCellBase]]] = {
    "lstm": (nn.LSTM, nn.LSTMCell),
    "gru": (nn.GRU, nn.GRUCell),
    "rnn": (nn.RNN, nn.RNNCell),
}
PROMISED_AT = (200, 32, 128)
"""T, B and H that the promises speak of."""


class Tagger(nn.Module):
    """A recurrent layer and a head on every step."""

    def __init__(self, cell: str, hidden: int) -> None:
        super().__init__()
        self.rnn = CELLS[cell][0](hidden, hidden)
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@dataclass
class Bench:
    """One model, its data and the three ways of a training step."""

    cell: str
    steps: int
    batch: int
    hidden: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = Tagger(self.cell, self.hidden)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.x = torch.randn(self.steps, self.batch, self.hidden)
        self.y = torch.randint(10, (self.steps * self.batch,))
        self.by_hand = CELLS[self.cell][1](self.hidden, self.hidden)

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.model(self.x).flatten(0, 1), self.y)

    def plain(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def recorded(self) -> None:
        self.optimizer.zero_grad()
        with rnndiag.probe(self.model) as probe:
            self.loss().backward()
        analyses = [(adj, contribution_norms(adj)) for adj in map(adjoints, probe.layer_runs)]
        proof = rnndiag.prove(probe.layer_runs, analyses)
        if proof.verdict != "exact":
            raise SystemExit(f"the recorded step is {proof.verdict}: {'; '.join(proof.reasons)}")
        self.optimizer.step()

    def naive(self) -> None:
        self.optimizer.zero_grad()
        state, states, outputs = None, [], []
        for x in self.x:
            state = self.by_hand(x, state)
            parts = state if isinstance(state, tuple) else (state,)
            for part in parts:
                part.retain_grad()
            states.append(parts)
            outputs.append(parts[0])
        logits = self.model.head(torch.stack(outputs)).flatten(0, 1)
        nn.functional.cross_entropy(logits, self.y).backward()
        torch.stack(
            [part.grad.norm() for parts in states for part in parts if part.grad is not None]
        )
        self.optimizer.step()


def interleaved(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(rounds + 2):
        for name, step in ways.items():
            start = time.perf_counter()
            step()
            if round_number >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - start)
    return times


def allocation_peak(step: Callable[[], None]) -> int:
    """Most bytes that torch's CPU allocator had handed out at once, over the start; all memory comes from it here."""
    large, pages.LARGE_BYTES = (
        pages.LARGE_BYTES,
        sys.maxsize,
    )  # numpy's own memory would not be seen
    try:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as seen:
            step()
    finally:
        pages.LARGE_BYTES = large
    live = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def held_by_autograd(bench: Bench) -> int:
    """Bytes of the distinct tensors that the plain step's graph keeps for its backward pass, weights and x left out."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in bench.model.parameters()}
    own.add(bench.x.untyped_storage().data_ptr())

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = bench.loss()
    total = sum(kept.values())
    del loss
    return total


def measure(bench: Bench, rounds: int) -> dict[str, float]:
    times = interleaved(
        {"plain": bench.plain, "recorded": bench.recorded, "naive": bench.naive}, rounds
    )
    plain, recorded, naive = (median(times[name]) for name in ("plain", "recorded", "naive"))
    held = held_by_autograd(bench)
    extra = allocation_peak(bench.recorded) - allocation_peak(bench.plain)
    whole = (bench.steps, bench.batch, bench.hidden) == PROMISED_AT
    over = {
        name: [a / b for a, b in zip(times[name], times["plain"], strict=True)]
        for name in ("recorded", "naive")
    }
    tell(f"recorded step, {bench.cell}", over["recorded"], whole=whole)
    tell(f"naive loop, {bench.cell}", over["naive"], unit="plain steps", whole=whole)
    tell(f"extra memory of a recorded step, {bench.cell}", extra / held, whole=whole)
    return {
        "plain_ms": 1e3 * plain,
        "recorded_ms": 1e3 * recorded,
        "naive_ms": 1e3 * naive,
        "recorded_over_plain": recorded / plain,
        "naive_over_plain": naive / plain,
        "autograd_mb": held / 2**20,
        "extra_peak_mb": extra / 2**20,
        "extra_over_autograd": extra / held,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {
        cell: measure(Bench(cell, options.steps, options.batch, options.hidden), options.rounds)
        for cell in options.cell
    }
    if options.json:
        print(json.dumps(found))
        return
    print(
        f"T={options.steps} B={options.batch} H={options.hidden} float32 threads={options.threads}"
    )
    for cell, row in found.items():
        print(
            f"{cell:5} plain {row['plain_ms']:6.1f} ms  recorded {row['recorded_ms']:6.1f} ms = "
            f"{row['recorded_over_plain']:.2f} plain steps "
            f"(limit {PROMISES[f'recorded step, {cell}'].limit})  naive loop "
            f"{row['naive_over_plain']:.2f}  autograd holds {row['autograd_mb']:.0f} MB, recording adds "
            f"{row['extra_peak_mb']:.0f} MB = {row['extra_over_autograd']:.2f} "
            f"(limit {PROMISES[f'extra memory of a recorded step, {cell}'].limit})"
        )


if __name__ == "__main__":
    main()
