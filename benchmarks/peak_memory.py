"""How much more memory does a fit take at its peak with the callback at its defaults than without it?

Run: python benchmarks/peak_memory.py [--sizes small medium large wide] [--rounds N]

Each fit of an LSTM tagger (see overhead.py) has a process of its own, with one thread. Two ratios of what it holds with
the callback over without, each of medians over rounds:

- process: the highest resident memory until `fit` returns, the page at the end included.
- fit: the same minus what the process held when the fit began: interpreter, torch, rnndiag, data and model are not
  counted; gradients, the optimizer's state, what autograd keeps and what the allocator retains are. Both processes have
  made a fit of a few units with the callback before, so that imports and first calls of kernels are not counted either.

The limit is on the first, which decides whether a job fits its machine. Exits 1 if it is missed.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as L
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rnndiag
from benchmarks.overhead import SIZES, Size, fit
from benchmarks.promises import tell

LIMIT = 1.25
TINY = Size(hidden=8, length=10, batch=4, steps=30)
WIDE = Size(hidden=512, length=200, batch=64, steps=2)
FITS = {
    **{
        name: (size, steps)
        for (name, size), steps in zip(SIZES.items(), (200, 150, 120), strict=True)
    },
    "wide": (WIDE, WIDE.steps),
}
"""Sizes with the number of training steps: enough for the first and the last recording, which hold every measure."""


def resident(field: str) -> float:
    """VmRSS of this process, or VmHWM, its highest value since it was reset, in MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(field)


class AtTheStart(L.Callback):
    """What the process holds when a fit begins, before any other callback is set up."""

    held = 0.0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM = VmRSS
        self.held = resident("VmRSS")


def measure(name: str, with_callback: bool) -> None:
    """Fit in this process; print its peak memory, that of the fit alone, both in MB, and the number of recordings."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for logger in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        fit(TINY, TINY.steps, [rnndiag.GradientDiagnostics(Path(folder) / "first")])
        path, start = Path(folder) / "run", AtTheStart()
        ours = [rnndiag.GradientDiagnostics(path)] if with_callback else []
        fit(*FITS[name], [start, *ours])
        peak = resident("VmHWM")
        recordings = len(rnndiag.open_run(path).steps) if with_callback else 0
        print(peak, peak - start.held, recordings)


def taken(name: str, how: str) -> tuple[float, float, int]:
    """What `measure` prints of a fit in a process of its own."""
    command = [sys.executable, __file__, "--one", name, how]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peak, own, recordings = told.stdout.split()[-3:]
    return float(peak), float(own), int(recordings)


def compare(name: str, rounds: int) -> bool:
    """One row of the table; whether the ratio is within the limit."""
    pairs = [(taken(name, "plain"), taken(name, "ours")) for _ in range(rounds)]
    size, steps = FITS[name]
    peaks, own = (
        [median(pair[which][column] for pair in pairs) for which in (0, 1)] for column in (0, 1)
    )
    print(
        f"| {name}: H = {size.hidden}, T = {size.length}, B = {size.batch} | {steps} | {pairs[0][1][2]} "
        f"| {peaks[0]:.0f} | {peaks[1]:.0f} | {peaks[1] / peaks[0]:.2f} "
        f"| {own[0]:.0f} | {own[1]:.0f} | {own[1] / own[0]:.2f} |",
        flush=True,
    )
    tell(f"peak memory of the process, {name}", peaks[1] / peaks[0])
    tell(f"peak memory of the fit alone, {name}", own[1] / own[0])
    return peaks[1] / peaks[0] <= LIMIT


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=FITS, default=list(FITS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        measure(chosen.one[0], chosen.one[1] == "ours")
        return 0
    print(
        "| fit | steps | recordings | process without, MB | with | ratio | fit without, MB | with | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    kept = [compare(name, chosen.rounds) for name in chosen.sizes]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    raise SystemExit(main())
