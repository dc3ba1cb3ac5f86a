"""Does the gradient check of kernels stay silent for right ones, and how long does it take?

    python benchmarks/gradcheck.py [--seeds 200] [--steps 9] [--quick]

False alarms over seeds for torch's RNN, LSTM and GRU, a minGRU loop and a parallel scan, with CPU seconds per check,
and one check of each at 64 steps; then planted bugs, whose paths are measured one by one.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gradcheck")]

from planted_scan import PlantedScan  # noqa: E402 - beside the tests
from right_kernels import NAMES, arguments  # noqa: E402

import rnndiag  # noqa: E402

BUGS = ("", "final state's cotangent dropped", "initial state's gradient missing")
"""The bugs that cost most: wrong in every run, so that most paths are measured."""


def alarms(name: str, seeds: int, steps: int) -> tuple[int, float]:
    """Number of results that are not true, and CPU seconds per check."""
    wrong, start = 0, time.process_time()
    for seed in range(seeds):
        torch.manual_seed(seed)
        kernel, inputs, state = arguments(name, steps)
        wrong += not rnndiag.gradcheck_recurrence(kernel, inputs=inputs, state=state, seed=seed)
    return wrong, (time.process_time() - start) / seeds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    seeds = 3 if chosen.quick else chosen.seeds
    total = 0
    for steps, count in ((64, 1), (chosen.steps, seeds)):
        for name in NAMES:
            wrong, seconds = alarms(name, count, steps)
            total += wrong
            print(
                f"{name:8} T={steps}: {wrong} alarms in {count} seeds, {seconds:.2f} CPU s a check"
            )
            sys.stdout.flush()
    for bug in BUGS:
        torch.manual_seed(0)
        x, h = torch.randn(64, 2, 3), torch.randn(2, 4)
        start = time.process_time()
        result = rnndiag.gradcheck_recurrence(PlantedScan(bug, 16), inputs=x, state=h, chunk=16)
        seconds = time.process_time() - start
        print(f"{bug or 'no bug'}, T=64: {len(result.wrong)} cells wrong, {seconds:.2f} CPU s")
        total += bool(result) != (not bug)
    return int(total > 0)


if __name__ == "__main__":
    raise SystemExit(main())
