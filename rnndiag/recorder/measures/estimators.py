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
UNTIMED_SECONDS = 1.0
"""About what all layers may take before a training step has been timed: a budget cannot tell more yet."""
CLIPPED = 0.5
"""Clipped estimators are clipped at this share of the full gradient's norm."""


def estimators(subject: Subject, run: LayerRun) -> Iterator[Measurement]:
    """Bias, spread, direction, cost and memory of each estimator, on the sampled sequences."""
    if not any(bool(part.any()) for part in run.direct):
        subject.not_measured[f"estimators of {run.name}"] = "no gradient of the loss reaches it"
        return
    limit = allowed(subject.runs, subject.extent.max_memory, subject.held)
    wanted = min(run.B, subject.extent.samples or run.B)
    if subject.extent.untimed:
        affordable = sequences_within(run, UNTIMED_SECONDS / len(subject.runs))
        if affordable < min(2, run.B):
            subject.not_measured[f"estimators of {run.name}"] = (
                f"before a step has been timed it may take {UNTIMED_SECONDS:g} s, and it takes about "
                f"{expected_seconds(run, min(2, run.B)):.2g} s"
            )
            return
        wanted = min(wanted, affordable)
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


def expected_seconds(run: LayerRun, sequences: int) -> float:
    """Rough duration of all scores on one CPU core: about 4 T + 100 outcomes, of which T + 100 are backward passes."""
    weights = sum(value.numel() for value in run.weights.values())
    passes = (run.T + 100) * run.T * sequences * weights * 2 / 40e9
    return passes + (4 * run.T + 100) * (1e-3 + weights * 4e-9)


def sequences_within(run: LayerRun, seconds: float) -> int:
    """The number of sequences whose scores take about so many seconds, at most all."""
    fixed = expected_seconds(run, 0)
    each = expected_seconds(run, 1) - fixed
    if each <= 0:  # a recurrence without weights
        return run.B
    return max(0, min(run.B, int((seconds - fixed) / each)))


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
