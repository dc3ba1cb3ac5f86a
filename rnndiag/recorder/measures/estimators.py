"""Scores of the registered gradient estimators on the recorded step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.estimators import ESTIMATORS, Full
from rnndiag.engine.truncation.estimators.estimate import Score, compare_estimators, estimate
from rnndiag.engine.truncation.estimators.estimator import RecordedStep
from rnndiag.recorder.measures.measure import GroupCost, Measure, Subject, register_measure
from rnndiag.recorder.measures.memory import SCORES as ESTIMATORS_TAKE
from rnndiag.recorder.measures.memory import allowed, sequences_that_fit
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import SCORES

DRAWS = 32
"""Number of draws of an estimator that cannot be enumerated; standard errors are stored."""
CLIPPED = 0.5
"""Clipped estimators are clipped at this share of the full gradient's norm."""


def estimators(subject: Subject, run: LayerRun) -> Iterator[Measurement]:
    """Bias, spread, direction, cost and memory of each estimator, on the sampled sequences."""
    if not any(bool(part.any()) for part in run.direct):
        subject.not_measured[f"estimators of {run.name}"] = "no gradient of the loss reaches it"
        return
    limit = allowed(subject.runs, subject.extent.max_memory, subject.held)
    wanted = min(run.B, subject.extent.samples or run.B)
    count = sequences_that_fit("scores of estimators", ESTIMATORS_TAKE, (run,), limit, wanted)
    part = run
    if count < run.B:
        part = run.select(np.linspace(0, run.B - 1, count).round().astype(int).tolist())
    draw = torch.Generator().manual_seed(subject.extent.seed)
    whole = estimate(part, Full()).mean.values()
    norm = CLIPPED * float(torch.stack([value.norm() for value in whole]).norm())
    if norm == 0:
        subject.not_measured[f"estimators of {run.name}"] = "its gradient is zero"
        return
    step = RecordedStep(run.T, len(run.cell.parts), norm)
    candidates = [one for kind in ESTIMATORS.values() for one in kind.recorded(step)]
    used = subject.estimators.get(run.name)
    if used is not None and used.label not in [one.label for one in candidates]:
        candidates.append(used)
    scores = compare_estimators(part, candidates, draws=DRAWS, generator=draw)
    subject.note_sampled(
        run.name, f"estimators: {count} of {run.B} sequences, {DRAWS} draws of what is drawn"
    )
    names = {"estimator": tuple(score.label for score in scores)}
    yield Measurement.of("estimator_score", np.asarray(list(map(_row, scores))), run.name, names)


def _row(score: Score) -> list[float]:
    return [float(getattr(score, name)) for name in SCORES]


ESTIMATOR_SCORES = register_measure(
    Measure(
        "estimators",
        GroupCost(steps=30.0, every=10, seconds=0.5, ends=True),
        of_layer=estimators,
        needs_finite=True,
    )
)
