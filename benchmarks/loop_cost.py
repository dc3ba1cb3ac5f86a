"""What does it cost to measure a loop of cells on its graph, and what by replay, in plain training steps?

An LSTMCell loop, T = 100, B = 16, H = 128, a loss at every step. On the graph every lag is one backward pass of the
loop; in a fit at most 32 lags are measured so. By replay the lags are swept within a budget of six plain steps.
CPU time is counted, so that other programs on the machine matter less.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import rnndiag
from rnndiag.recorder.capture import Capture
from rnndiag.recorder.watch import MAX_LAGS

T, B, H = 100, 16, 128


def loss_of(model: nn.ModuleDict, x: Tensor, carry: Callable[..., Any] | None = None) -> Tensor:
    """The loop and its loss."""
    h = c = x.new_zeros(B, H)
    total = x.new_zeros(())
    for step in x:
        if carry is not None:
            h, c = carry(h, c, name="loop")
        h, c = model["cell"](step, (h, c))
        total = total + model["head"](h).square().mean()
    return total


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return sorted(found)[len(found) // 2]


def main(repeats: int = 5) -> dict[str, float]:
    """Plain training steps that each way costs, its own training step included."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.ModuleDict({"cell": nn.LSTMCell(8, H), "head": nn.Linear(H, 1)})
    x = torch.randn(T, B, 8)

    def plain() -> None:
        model.zero_grad()
        loss_of(model, x).backward()

    def on_graph(lags: int | None, carry: Any) -> None:
        model.zero_grad()
        capture = Capture(model)
        capture.max_lags = lags
        capture.arm()
        loss_of(model, x, carry).backward()
        capture.disarm()
        capture.take()

    def by_replay(budget: float | None) -> None:
        model.zero_grad()
        with rnndiag.probe(model) as probe:
            loss_of(model, x).backward()
        (run,) = probe.layer_runs
        rnndiag.contribution_norms(rnndiag.adjoints(run))
        rnndiag.lag_sweep(run, budget=budget)

    plain()
    unit = seconds(plain, repeats)
    return {
        "plain step, ms": 1e3 * unit,
        "recorded, nothing measured": seconds(lambda: on_graph(None, None), repeats) / unit,
        f"on the graph, {MAX_LAGS} lags": seconds(
            lambda: on_graph(MAX_LAGS, rnndiag.carry), repeats
        )
        / unit,
        "on the graph, all lags": seconds(lambda: on_graph(None, rnndiag.carry), 1) / unit,
        "by replay, budget of 6": seconds(lambda: by_replay(6.0), repeats) / unit,
        "by replay, all lags": seconds(lambda: by_replay(None), 1) / unit,
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:32} {value:8.1f}")
