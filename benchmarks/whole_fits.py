"""What does the callback add to whole fits of LSTM, GRU, RNN and a loop of cells, short ones and long ones?

Run: python benchmarks/whole_fits.py [--layers lstm gru rnn "cell loop"] [--sizes ...] [--seconds 60] [--threads 1]

Each row is one fit without and one with the callback at its defaults, page included, in turns of 20 steps (see
overhead.py): how much more CPU time and time by the clock, the number of recordings, and the number of those that hold
all that a diagnosis asks of every recording. Of short fits the seconds matter, of long ones the ratio. The steps of a
fit follow from the time of a plain step, which is taken first.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rnndiag
from benchmarks.overhead import LAYERS, Size, fit, in_turns, ratio, warm_up
from benchmarks.promises import tell
from benchmarks.steady_memory import keep_memory
from benchmarks.turns import Turn

SIZES = {
    "tiny": Size(hidden=16, length=10, batch=8, steps=0),
    "small": Size(hidden=64, length=30, batch=32, steps=0),
    "medium": Size(hidden=128, length=50, batch=32, steps=0),
    "large": Size(hidden=256, length=60, batch=32, steps=0),
}
LOOP = Size(hidden=64, length=50, batch=16, steps=0, layer="cell loop")
"""The one size of a loop of cells."""

WANTED = (
    "credit_profile",
    "gate_mean",
    "update_ratio",
    "swing",
    "contribution_norm",
    "stepped_gradient_norm",
    "residual",
)
"""What a diagnosis asks of every recording; of a cell without gates `gate_mean` is not asked."""


@dataclass(frozen=True)
class Row:
    """One pair of fits."""

    plain: list[Turn]
    ours: list[Turn]
    recordings: int
    complete: int
    """Recordings that hold all of WANTED."""
    share: float
    """By the callback's own account."""

    @property
    def wall(self) -> float:
        """Ratio by the clock."""
        return ratio(self.plain, self.ours, lambda t: t.wall)

    @property
    def cpu(self) -> float:
        """Ratio of CPU times."""
        return ratio(self.plain, self.ours, lambda t: t.cpu)

    def extra(self) -> tuple[float, float]:
        """Seconds more, by the clock and of CPU time."""
        return (
            sum(t.wall for t in self.ours) - sum(t.wall for t in self.plain),
            sum(t.cpu for t in self.ours) - sum(t.cpu for t in self.plain),
        )


def step_seconds(size: Size) -> float:
    """Wall time of a plain training step."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        fit(size, 40, [])
        whole = time.perf_counter() - start
        start = time.perf_counter()
        fit(size, 10, [])
        times.append((whole - (time.perf_counter() - start)) / 30)
    return median(times)


def in_pairs(size: Size, steps: int, threads: int) -> Row:
    """Both fits, in turns."""
    wanted = set(WANTED) - ({"gate_mean"} if size.layer == "rnn" else set())

    def read(callback: Any) -> tuple[int, int, float]:
        run = rnndiag.open_run(callback.run_dir)
        taken = [r for r in run.recordings if "contribution_norm" in r.quantities]
        complete = sum(wanted <= set(r.quantities) for r in taken)
        return len(taken), complete, run.recordings[-1].notes["overhead"]["share"]

    (plain, ours), found = in_turns(size, steps, threads, read, screen=False)
    return Row(plain, ours, *found)


def tell_row(size: Size, seconds: float, threads: int, whole: bool) -> None:
    """Measure and print one row."""
    each = step_seconds(size)
    steps = max(60, round(seconds / each))
    row = in_pairs(size, steps, threads)
    wall, cpu = row.extra()
    print(
        f"{size.layer:9} H={size.hidden} T={size.length} B={size.batch}: {steps} steps of {1e3 * each:.1f} ms, "
        f"{sum(t.wall for t in row.plain):.1f} s: {row.cpu:.3f} x in CPU time ({cpu:+.2f} s), {row.wall:.3f} x by the "
        f"clock ({wall:+.2f} s); {row.recordings} recordings, {row.complete} of them complete; by its own account "
        f"{row.share:.1%}",
        flush=True,
    )
    name = f"fit of {seconds:g} s, {size.layer}, H={size.hidden}"
    tell(f"CPU time, {name}", row.cpu, unit="x", whole=whole)
    tell(f"by the clock, {name}", row.wall, unit="x", whole=whole)
    tell(f"seconds more, {name}", wall, unit="s", whole=whole)
    tell(f"complete recordings, {name}", row.complete, unit="", whole=whole)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seconds", nargs="+", type=float, default=[60.0], help="length of a fit")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    keep_memory()
    warnings.simplefilter("ignore")
    for logger in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    warm_up(options.threads)
    for seconds in options.seconds:
        for layer in options.layers:
            sizes = (
                [LOOP]
                if layer == "cell loop"
                else [replace(SIZES[name], layer=layer) for name in options.sizes]
            )
            for size in sizes:
                tell_row(size, seconds, options.threads, whole=seconds >= 60)


if __name__ == "__main__":
    main()
