"""Which estimator of the gradient is best here: truncated, randomized and the original LSTM rule, side by side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.estimate import Score, compare_estimators
from rnndiag.engine.truncation.estimators import (
    Bernoulli,
    CellOnly,
    Chunk,
    Full,
    Roulette,
    SourceStep,
    Uniform,
    Window,
    artbp,
)
from rnndiag.engine.truncation.outcomes import Estimator
from rnndiag.recorder.measures.measure import Measure, Subject, register_measure
from rnndiag.recorder.schedule import GroupCost
from rnndiag.run.measurement import Measurement
from rnndiag.run.quantities import SCORES

DRAWS = 32
"""Draws of what cannot be enumerated; their standard errors are stored."""


def candidates(run: LayerRun) -> list[Estimator]:
    """What is compared: windows and chunks of an eighth and a third of the steps, and every randomized kind."""
    short, long = max(2, run.T // 8), max(3, run.T // 3)
    found: list[Estimator] = [Full()]
    if run.T > 3:
        found += [Window(short), Window(long), Chunk(short), Chunk(long), SourceStep(run.T - long)]
        found += [Bernoulli(1 - 1 / long), Bernoulli(artbp(float(long)))]
    found += [Uniform(), Roulette("geometric", float(long)), Roulette("optimal")]
    if len(run.cell.parts) > 1:
        found.append(CellOnly())
    return found


def estimators(subject: Subject, run: LayerRun) -> Iterator[Measurement]:
    """Bias, spread, direction, cost and memory of each, on the sampled sequences."""
    if not any(bool(part.any()) for part in run.direct):
        subject.not_measured[f"estimators of {run.name}"] = "no gradient of the loss reaches it"
        return
    count = min(run.B, subject.extent.samples or run.B)
    part = run
    if count < run.B:
        part = run.select(np.linspace(0, run.B - 1, count).round().astype(int).tolist())
    draw = torch.Generator().manual_seed(subject.extent.seed)
    scores = compare_estimators(part, candidates(run), draws=DRAWS, generator=draw)
    subject.say_sampled(
        run.name, f"estimators: {count} of {run.B} sequences, {DRAWS} draws of what is drawn"
    )
    names = {"estimator": tuple(score.label for score in scores)}
    yield Measurement.of("estimator_score", np.asarray(list(map(_row, scores))), run.name, names)


def _row(score: Score) -> list[float]:
    return [float(getattr(score, name)) for name in SCORES]


ESTIMATORS = register_measure(
    Measure(
        "estimators",
        GroupCost(steps=30.0, share=0.1, every=10, seconds=0.5),
        of_layer=estimators,
        needs_finite=True,
    )
)
