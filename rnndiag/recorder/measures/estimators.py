"""Which estimator of the gradient is best here: truncated, randomized and the original LSTM rule, side by side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.estimators import (
    Bernoulli,
    CellOnly,
    Chunk,
    Clip,
    Full,
    Roulette,
    SourceStep,
    Uniform,
    Window,
    artbp,
)
from rnndiag.engine.truncation.estimators.estimate import Score, compare_estimators, estimate
from rnndiag.engine.truncation.estimators.estimator import Estimator
from rnndiag.recorder.measures.measure import GroupCost, Measure, Subject, register_measure
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import SCORES

DRAWS = 32
"""Draws of what cannot be enumerated; their standard errors are stored."""
CLIPPED = 0.5
"""Clipped estimators are clipped at this share of the gradient's norm."""


def candidates(run: LayerRun, norm: float) -> list[Estimator]:
    """Every kind of estimator; windows, chunks and stretches of an eighth and a third of the steps.

    norm: what two of them are clipped at.
    """
    T, short, long = run.T, max(2, run.T // 8), max(3, run.T // 3)
    found: list[Estimator] = [Full()]
    if T > 3:
        at_seams = [0.5 if t % short == 0 else 1.0 for t in range(1, T)]
        seams = f"Bernoulli, p = 0.5 every {short} steps"
        found += [Window(short), Window(long), Chunk(short), Chunk(long), Chunk(short, long)]
        found += [SourceStep(T - long), Bernoulli(1 - 1 / long), Bernoulli(at_seams, name=seams)]
        found += [Bernoulli(artbp(float(long))), Clip(norm, Chunk(long))]
    found += [Uniform(), Roulette("geometric", float(long)), Roulette("optimal")]
    found += [Roulette([1 / T] * T, name="roulette, every length alike"), Clip(norm, Full())]
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
    whole = estimate(part, Full()).mean.values()
    norm = CLIPPED * float(torch.stack([value.norm() for value in whole]).norm())
    scores = compare_estimators(part, candidates(run, norm), draws=DRAWS, generator=draw)
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
        GroupCost(steps=30.0, every=10, seconds=0.5, ends=True),
        of_layer=estimators,
        needs_finite=True,
    )
)
