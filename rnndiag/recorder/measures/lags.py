"""How far back the gradient reaches, the cost of every window and chunk, and the cause of the reach."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.chains.stack import Runs
from rnndiag.engine.truncation.sweep.lag_sweep import lag_sweep
from rnndiag.engine.truncation.sweep.lag_sweep_result import LagSweep
from rnndiag.errors import NotSupported
from rnndiag.recorder.measures.cause import cause_of
from rnndiag.recorder.measures.coarse import coarse
from rnndiag.recorder.measures.measure import GroupCost, Measure, Subject, register_measure
from rnndiag.recorder.measures.memory import SWEEP
from rnndiag.recorder.measures.pooling import Array, array
from rnndiag.stats.reach import reach_error
from rnndiag.store.layer_names import stack_name
from rnndiag.store.measurement import Measurement


def lags(subject: Subject, run: LayerRun) -> Iterator[Measurement]:
    """One lag sweep of the layer; its sampling follows from its price and is stored in the notes."""
    stacked = any(run.name == one.name for stack in subject.stacks for one in stack)
    sweep = _sweep(subject, run, run.name, shared=stacked)
    profile = array(sweep.credit_profile)
    yield from _over_lags(sweep, run.name)
    yield coarse("credit_matrix", array(sweep.log_credit), run.name)
    keys = tuple(sweep.tail_norms)
    measured = _measured(sweep)
    tails = np.stack([array(sweep.tail_norms[key]) for key in keys])[:, measured]
    taus = {"lag": tuple(map(str, measured))}
    yield Measurement.of("tail_norm", tails, run.name, {"parameter": keys, **taus}, keep_dtype=True)
    norms = np.stack([array(norm) for norm in sweep.lag_gradient_norms.values()])
    known = {"parameter": tuple(sweep.lag_gradient_norms)}
    yield Measurement.of("lag_gradient_norm", norms, run.name, known)
    subject.facts.setdefault("cause", {})[run.name] = cause_of(run, profile[:, 0], subject.words)


def stack_lags(subject: Subject) -> Iterator[Measurement]:
    """One lag sweep per one-directional stack, cutting all of its layers at the same step."""
    for stack in subject.stacks:
        name = stack_name([run.name for run in stack])
        if not all(subject.finite(run) for run in stack):
            continue
        try:
            sweep = _sweep(subject, stack, name, shared=True)
        except NotSupported as limit:
            subject.not_measured[f"lags of {name}"] = str(limit)
            continue
        subject.facts.setdefault("stacks", {})[name] = [run.name for run in stack]
        yield from _over_lags(sweep, name)


def _sweep(subject: Subject, runs: Runs, name: str, shared: bool) -> LagSweep:
    """A sweep within the price of one; a stack and its layers share it, half for the stack and half for the layers."""
    draw = torch.Generator().manual_seed(subject.extent.seed)
    price = subject.extent.sweep_steps / (2 if shared else 1)
    if isinstance(runs, LayerRun):
        (runs,) = subject.within_memory("lag sweep", SWEEP, (runs,))
    else:
        runs = subject.within_memory("lag sweep", SWEEP, tuple(runs))
    adj = subject.made_already(runs) if isinstance(runs, LayerRun) else None
    sweep = lag_sweep(runs, budget=price, generator=draw, adj=adj)
    if sweep.sampling.sampled:
        subject.note_sampled(name, f"lag sweep: {sweep.sampling.sentence}")
    return sweep


def _reach_error(sweep: LagSweep) -> float:
    """Standard error of the reach, in steps."""
    profile = sweep.profile
    if profile.without_one is None:
        return 0.0
    return reach_error(array(profile.log), array(profile.without_one), profile.unsampled)


def _measured(sweep: LagSweep) -> list[int]:
    """The windows τ = 0 .. D that were measured."""
    return [0, *sweep.sampling.windows]


def _over_lags(sweep: LagSweep, name: str) -> Iterator[Measurement]:
    """Profile, windows, chunks and reference norms of a layer or stack."""
    reached = max(1, sweep.profile.reached)  # lags that no loss reaches cannot be measured
    yield Measurement.of("credit_profile", array(sweep.credit_profile)[:reached], name)
    yield Measurement.of("reach_error", np.asarray(_reach_error(sweep)), name)
    measured = _measured(sweep)
    taus = {"lag": tuple(map(str, measured))}
    for quantity in (
        "window_bias",
        "window_cosine",
        "window_progress",
        "tail_mean_square",
        "tail_mean_square_error",
    ):
        values: Array = array(getattr(sweep, quantity))[measured]
        # keep float64: biases near zero are compared to more digits than float32 holds
        yield Measurement.of(quantity, values, name, taus, keep_dtype=quantity == "window_bias")
    for quantity in ("gradient_mean_square", "noise", "full_gradient_norm"):
        yield Measurement.of(quantity, np.asarray(getattr(sweep, quantity)), name)
    chunks = sweep.chunks
    yield Measurement.of("chunk_size", np.asarray(chunks.size), name)
    yield Measurement.of("chunk_bias", array(chunks.bias), name)
    yield Measurement.of("chunk_cosine", array(chunks.cosine), name)
    yield Measurement.of("chunk_mean_square", array(chunks.mean_square), name)
    yield Measurement.of("chunk_mean_square_error", array(chunks.mean_square_error), name)
    yield Measurement.of("lag_samples", np.asarray(sweep.sampling.numbers), name)


LAGS = register_measure(
    Measure(
        "lags",
        GroupCost(steps=10.0, seconds=0.1),
        of_layer=lags,
        of_all=stack_lags,
        needs_finite=True,
    )
)
