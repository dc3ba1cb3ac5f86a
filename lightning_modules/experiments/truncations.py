"""Truncations side by side: what each one's gradient is off by, and what training with it reaches.

The bias is measured on the full gradient of a held-out minibatch, at the weights where training starts and at those
where it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rnndiag
from lightning_modules.data import TaskData
from lightning_modules.experiments.fit import Fitted, build, fit
from lightning_modules.experiments.long_gap import DATA, HIDDEN, SYSTEMS, TASK
from lightning_modules.markdown import table
from lightning_modules.program import Program
from lightning_modules.training.full import Full
from rnndiag import estimators

SYSTEM = "LSTM, forget bias 3"
DRAWS = 256


@dataclass(frozen=True)
class Truncation:
    """How to train with it, and the estimator that scores it."""

    label: str
    training: str | Mapping[str, Any]
    estimator: Any


TRUNCATIONS = (
    Truncation("full BPTT", "full", estimators.Full()),
    Truncation("window of 10", {"name": "window", "tau": 10}, estimators.Window(10)),
    Truncation("window of 25", {"name": "window", "tau": 25}, estimators.Window(25)),
    Truncation("window of 32", {"name": "window", "tau": 32}, estimators.Window(32)),
    Truncation("chunks of 10", {"name": "chunked", "k": 10}, estimators.Chunk(10)),
    Truncation("chunks of 17", {"name": "chunked", "k": 17}, estimators.Chunk(17)),
    Truncation("Bernoulli, p = 0.95", {"name": "bernoulli", "p": 0.95}, estimators.Bernoulli(0.95)),
    Truncation("uniform point", "uniform", estimators.Uniform()),
    Truncation("1997 rule", "cell_only", estimators.CellOnly()),
)


def train(directory: Path) -> dict[str, Fitted]:
    """The same system from the same seed, trained with each."""
    fitted = {}
    for number, one in enumerate(TRUNCATIONS):
        model = {"task": TASK, "hidden": HIDDEN, **SYSTEMS[SYSTEM], "estimator": one.training}
        fitted[one.label] = fit(model, DATA, directory / f"truncation-{number}")
    return fitted


def score(program: Program, data: TaskData, truncation: Truncation) -> rnndiag.Score:
    """How the truncation does on the full gradient of a held-out minibatch."""
    batch = data.task.batch("held-out", 0, data.batch_size, data.seed)
    program.zero_grad()
    with rnndiag.probe(program) as seen:
        program.task.loss(program.network(batch, Full()), batch.targets).backward()
    program.zero_grad()
    (run,) = seen.layer_runs
    return rnndiag.estimate(run, truncation.estimator, draws=DRAWS)


def report(fitted: Mapping[str, Fitted]) -> str:
    """The table."""
    head = ("trained with", "bias, start", "spread, start", "bias, end", "spread, end", "loss", "")
    model = {"task": TASK, "hidden": HIDDEN, **SYSTEMS[SYSTEM]}
    fresh = build(model, DATA, seed=0)
    rows = []
    for truncation in TRUNCATIONS:
        one = fitted[truncation.label]
        start = score(*fresh, truncation)
        end = score(one.program, one.data, truncation)
        rows.append(
            (
                truncation.label,
                *_in_words(start),
                *_in_words(end),
                f"{one.loss:.4f}",
                "learnt" if one.learnt else "not learnt",
            )
        )
    return table(head, rows)


def _in_words(score: rnndiag.Score) -> tuple[str, str]:
    error = f" ± {score.bias_error:.2f}" if score.bias_error else ""
    return f"{score.bias:.3f}{error}", f"{score.sd:.2f}"
