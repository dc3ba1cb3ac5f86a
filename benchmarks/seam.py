"""What does following the gradient across the seam cost? `python -m benchmarks.seam`.

A two-layer LSTM is trained in chunks with a carried, detached state, outside of any Trainer. Plain steps and steps
whose calls are kept alternate in one run; the sweep across the seam is timed beside them. Each number is a median, in
plain training steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor, nn

import rnndiag
from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.measures.seam import seam
from rnndiag.recorder.replay.call_memory import CallMemory
from rnndiag.recorder.replay.earlier_chunks import Chunks
from rnndiag.recorder.schedule.overhead import Overhead

KEPT = 2


class Carried(nn.Module):
    """A language model's shape: the state goes on, its gradient does not."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(size, size, num_layers=2)
        self.head = nn.Linear(size, size)
        self.state: tuple[Tensor, ...] | None = None

    def loss(self, x: Tensor) -> Tensor:
        """Of one chunk."""
        out, state = self.rnn(x, self.state)
        self.state = tuple(part.detach() for part in state)
        return (self.head(out) - x).square().mean()


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = perf_counter()
    work()
    return perf_counter() - start


def measure(T: int, B: int, H: int, rounds: int) -> dict[str, float]:
    """Medians over the rounds: seconds of a plain step, and the others over it."""
    torch.manual_seed(0)
    model = Carried(H)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    call_memory = CallMemory(model, Faults(strict=True), Overhead(), KEPT)

    def step() -> None:
        optimizer.zero_grad()
        model.loss(torch.randn(T, B, H)).backward()
        optimizer.step()

    times: dict[str, list[float]] = {"plain": [], "kept": [], "found": [], "swept": []}
    for _ in range(3):
        step()
    for _ in range(rounds):
        call_memory.disarm()
        times["plain"].append(seconds(step))
        call_memory.arm()
        for _ in range(KEPT):
            times["kept"].append(seconds(step))
        group = recorded(model, torch.randn(T, B, H))
        chunks = Chunks(call_memory, KEPT)
        start = perf_counter()
        earlier = chunks.before(group)
        times["found"].append(perf_counter() - start)
        times["swept"].append(seconds(lambda e=earlier, g=group: seam("rnn", e, g, 8)))  # type: ignore[misc]
        assert len(earlier) == KEPT
    plain = statistics.median(times["plain"])
    found = {name: statistics.median(values) / plain for name, values in times.items()}
    return {**found, "plain": plain, "kept": found["kept"] - 1}


def recorded(model: Carried, x: Tensor) -> tuple[LayerRun, ...]:
    """The layer runs of one chunk."""
    with rnndiag.probe(model) as probe:
        model.loss(x).backward()
    return tuple(probe.layer_runs)


def main() -> None:
    """Print one line a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    sys.stdout.write(
        "   T    B    H   plain step   keeping a call   running 2 chunks again   sweep across (in plain steps)\n"
    )
    for T, B, H in ((35, 20, 200), (50, 32, 128), (20, 8, 32)):
        found = measure(T, B, H, rounds)
        sys.stdout.write(
            f"{T:4d} {B:4d} {H:4d}   {1000 * found['plain']:7.1f} ms   {found['kept']:+14.3f}   "
            f"{found['found']:22.2f}   {found['swept']:12.2f}\n"
        )


if __name__ == "__main__":
    main()
