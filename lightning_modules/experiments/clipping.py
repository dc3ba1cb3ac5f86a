"""Clipping by norm, on and off: it rescales the gradient and leaves every lag its share, so vanishing stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

import rnndiag
from lightning_modules.experiments.fit import Fitted, build, fit
from lightning_modules.experiments.long_gap import DATA, HIDDEN, SYSTEMS, TASK, reach_at
from lightning_modules.markdown import table

SYSTEM = "tanh RNN"
NORMS = (None, 0.1, 0.01)
LAGS = (0, 1, 2, 5, 10)


def train(directory: Path) -> dict[float | None, Fitted]:
    """The same system from the same seed, clipped at different norms."""
    model = {"task": TASK, "hidden": HIDDEN, **SYSTEMS[SYSTEM]}
    return {
        norm: fit(model, DATA, directory / f"clip-{norm or 'off'}", clip=norm) for norm in NORMS
    }


def shares(norm: float | None) -> list[float]:
    """<clipped gradient, c_d> / <gradient, c_d> for some lags d: how much of each lag's part a step still makes.

    The clipped gradient is what torch leaves in `.grad` of the recurrent weights after clipping the whole model.
    """
    program, data = build({"task": TASK, "hidden": HIDDEN, **SYSTEMS[SYSTEM]}, DATA, seed=0)
    batch = data.task.batch("train", 0, 32, seed=0)
    with rnndiag.probe(program) as seen:
        loss = program.task.loss(program.network(batch, program.estimator), batch.targets)
        loss.backward()
    (run,) = seen.layer_runs
    sweep = rnndiag.lag_sweep(run, lag_gradients=True)
    weight = program.get_parameter(run.parameters["weight_hh"])
    assert weight.grad is not None
    before = weight.grad.clone()
    if norm is not None:
        torch.nn.utils.clip_grad_norm_(program.parameters(), norm)
    parts = [sweep.lag_gradients["weight_hh"][lag] for lag in LAGS]
    return [float((weight.grad * part).sum() / (before * part).sum()) for part in parts]


def clipped_share(fitted: Fitted) -> float:
    """The share of training steps that were clipped."""
    recordings = (
        fitted.run.at(step, phase)
        for phase in fitted.run.phases
        for step in fitted.run.steps_of(phase)
    )
    flags = [recording.get("history_clipped") for recording in recordings]
    return float(np.mean(np.concatenate([flag.values for flag in flags if flag is not None])))


def report(fitted: Mapping[float | None, Fitted]) -> str:
    """The table: what training reached, and by how much clipping scaled each lag's part of the first gradient."""
    head = ("clipped at", "steps clipped", *(f"lag {lag}" for lag in LAGS))
    head += ("reach at the start", "reach at the end", "loss")
    rows = []
    for norm, one in fitted.items():
        rows.append(
            (
                "off" if norm is None else f"norm {norm:g}",
                "–" if norm is None else f"{clipped_share(one):.0%}",
                *(f"x {factor:.4g}" for factor in shares(norm)),
                f"{reach_at(one, 0):.1f}",
                f"{reach_at(one, -1):.1f}",
                f"{one.loss:.4f}",
            )
        )
    return table(head, rows)
