"""How far back the gradient reaches, what every window and chunk would cost, and why the reach is what it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.sweep import LagSweep, lag_sweep
from rnndiag.recorder.measures.cause import cause_of
from rnndiag.recorder.measures.coarse import coarse
from rnndiag.recorder.measures.measure import Measure, Subject, register_measure
from rnndiag.recorder.measures.pooling import Array, array
from rnndiag.recorder.schedule import GroupCost
from rnndiag.run.measurement import Measurement


def lags(subject: Subject, run: LayerRun) -> Iterator[Measurement]:
    """One lag sweep of the layer, its sampling chosen by price and said in the notes."""
    draw = torch.Generator().manual_seed(subject.extent.seed)
    sweep = lag_sweep(run, budget=subject.extent.sweep_steps, generator=draw)
    if not sweep.sampling.complete or sweep.lags < run.T:
        subject.say_sampled(run.name, f"lag sweep: {sweep.sampling.sentence}")
    profile = array(sweep.credit_profile)
    yield Measurement.of("credit_profile", profile, run.name)
    yield coarse("credit_matrix", array(sweep.log_credit), run.name)
    yield from _windows(sweep, run)
    yield from _chunks(sweep, run)
    yield Measurement.of("lag_samples", np.asarray(sweep.sampling.numbers), run.name)
    subject.facts.setdefault("cause", {})[run.name] = cause_of(run, profile[:, 0])


def _windows(sweep: LagSweep, run: LayerRun) -> Iterator[Measurement]:
    """Quantities by window τ = 0 .. D, of the windows whose gradients were measured."""
    keys = tuple(sweep.tail_norms)
    measured = [0, *sweep.sampling.windows]
    taus = {"lag": tuple(map(str, measured))}
    tails = np.stack([array(sweep.tail_norms[key]) for key in keys])[:, measured]
    yield Measurement.of("tail_norm", tails, run.name, {"parameter": keys, **taus})
    norms = np.stack([array(norm) for norm in sweep.lag_gradient_norms.values()])
    known = {"parameter": tuple(sweep.lag_gradient_norms)}
    yield Measurement.of("lag_gradient_norm", norms, run.name, known)
    for name in (
        "window_bias",
        "window_cosine",
        "window_progress",
        "tail_mean_square",
        "tail_mean_square_error",
    ):
        values: Array = array(getattr(sweep, name))[measured]
        yield Measurement.of(name, values, run.name, taus)
    for name in ("gradient_mean_square", "noise", "full_gradient_norm"):
        yield Measurement.of(name, np.asarray(getattr(sweep, name)), run.name)


def _chunks(sweep: LagSweep, run: LayerRun) -> Iterator[Measurement]:
    chunks = sweep.chunks
    yield Measurement.of("chunk_size", np.asarray(chunks.size), run.name)
    yield Measurement.of("chunk_bias", array(chunks.bias), run.name)
    yield Measurement.of("chunk_cosine", array(chunks.cosine), run.name)


LAGS = register_measure(
    Measure(
        "lags",
        GroupCost(steps=10.0, share=0.4, every=1, seconds=0.1, promised=True),
        of_layer=lags,
        needs_finite=True,
    )
)
