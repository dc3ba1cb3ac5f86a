"""The table of docs/concepts/bias.md: the naive ratio's error beside the pooled estimate, at a known systematic bias.

`python scripts/bias_table.py` prints it; a test holds the page against it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from truncation.planted import BIAS, recorded

from rnndiag import lag_sweep
from rnndiag.stats.advice import resolved_bias
from rnndiag.stats.window import EPSILON, systematic_bias

RATIOS = (3.0, 1.0, 0.3, 0.1)
"""Signal to noise of one minibatch."""
RECORDINGS = 50
HEAD = (
    "signal to noise",
    "truth",
    "naive ratio",
    "its error",
    "pooled, within two standard errors",
    "what is said",
)


def row(number: int, ratio: float) -> tuple[str, ...]:
    """One signal-to-noise ratio, in the words of the page."""
    seeds = range(1000 * (number + 1), 1000 * (number + 1) + RECORDINGS)
    sweeps = [lag_sweep(recorded(ratio, seed), chunks=()) for seed in seeds]
    naive = float(np.mean([float(sweep.window_bias[1]) for sweep in sweeps]))
    tails = np.stack([sweep.tail_mean_square.numpy() for sweep in sweeps])[:, :2]
    whole = np.array([sweep.gradient_mean_square for sweep in sweeps])
    pooled, said = systematic_bias(tails, whole), resolved_bias(tails, whole, None, EPSILON)
    low, middle, high = (
        max(float(pooled.square[1]) + k * float(pooled.square_error[1]), 0.0) ** 0.5
        for k in (-2, 0, 2)
    )
    between = f"{100 * middle:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"
    return (
        f"{ratio:g}",
        f"{100 * BIAS:.1f} %",
        f"{100 * naive:.1f} %",
        f"{100 * (naive - BIAS):+.1f}",
        between if pooled.resolved else "–",
        "not resolved" if said is None else f"{100 * said:.1f} %",
    )


def table() -> str:
    """The table in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *(row(k, ratio) for k, ratio in enumerate(RATIOS))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
