"""The window in use and the reach of the gradient, from one recorded batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rnndiag.engine.truncation.sweep.lag_sweep import lag_sweep
from rnndiag.errors import NotSupported
from rnndiag.recorder.need.output_loss import LossFn, scalar_loss
from rnndiag.recorder.probe import probe
from rnndiag.stats.reach import reach

SEQUENCES = 32
"""Number of sequences that the reach is measured on."""


@dataclass(frozen=True)
class GradientLimits:
    """How far back the gradient of one batch goes."""

    window: int | None
    """Steps between detached states; None: the state is not detached."""
    reach: float
    """Steps within which 90 % of the credit lies, for the layer with the longest reach; NaN: unknown."""


def gradient_limits(model: nn.Module, loss_fn: LossFn, batch: Any, layer: str) -> GradientLimits:
    """Record one forward and backward pass of a layer. Overwrites the gradients of the parameters."""
    for parameter in model.parameters():
        parameter.grad = None  # an existing gradient would be added to in place
    with torch.enable_grad(), probe(model) as seen:
        scalar_loss(loss_fn(model, batch)).backward()
    runs = [
        run
        for run in seen.layer_runs
        if run.name.split("#")[0] == layer or run.name.startswith(f"{layer}.l")
    ]
    detached = any(run.tie.startswith("detached") for run in runs)
    window = max(run.T for run in runs) if detached else None
    reaches = []
    for run in runs:
        some = run if run.B <= SEQUENCES else run.select(range(SEQUENCES))
        try:
            profile = lag_sweep(some, budget=3.0).credit_profile[:, 0].detach().cpu().numpy()
        except NotSupported as error:
            raise NotSupported(
                f"What the loop does between two steps of {run.name} is no part of it, so its memory cannot be told "
                f"from it: {run.open or error.what}.",
                "Move one whole step into an nn.Module that takes (input, state) and returns the new state, and name "
                "it with layer=.",
            ) from None
        found = reach(profile, steps=run.T)
        if found.reached:
            reaches.append(float(found))
    return GradientLimits(window, max(reaches, default=math.nan))
