"""The scale-free numbers of one forward and backward pass, which are fixed by weights, batch and code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from rnndiag.errors import CannotJudge
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.measures import Extent, Subject, chosen_measures, take
from rnndiag.recorder.need.output_loss import loss_with_gradient
from rnndiag.recorder.preflight.untouched import untouched
from rnndiag.recorder.probe import probe
from rnndiag.store.measurement import Measurement

GROUPS = ("contributions", "lags", "gates")
SWEEP_STEPS = 50.0
"""Cost limit of a lag sweep in plain steps: high enough that models of a frozen gate's size are not sampled."""

AS_IT_IS = ("window_bias", "chunk_bias", "gate_mean", "state_norm")
BY_ITS_LARGEST = (
    "direct_gradient_norm",
    "adjoint_norm",
    "contribution_norm",
    "gate_contribution_norm",
    "lag_gradient_norm",
    "tail_norm",
)
FROM_LOGS = ("credit_profile",)


def measure(
    model: nn.Module, loss_fn: Callable[[nn.Module, Any], Any], batch: Any
) -> dict[str, Any]:
    """Layer runs with their ties, proof, dtype, and `quantity@layer` -> a flat list of numbers, as JSON."""
    with untouched(model), torch.backends.cudnn.flags(enabled=False):
        model.eval()
        torch.manual_seed(0)
        with probe(model) as seen:
            loss_with_gradient(loss_fn(model, batch)).backward()
        passes = seen.backward_passes
    runs = [run for one in passes for run in one.layer_runs]
    if not runs:
        raise CannotJudge(
            "No recurrent layer ran and got a gradient.",
            "Check the factory's model, batch and loss_fn.",
        )
    numbers: dict[str, list[float | str]] = {}
    verdicts, reasons = [], {}
    for one in passes:
        subject = Subject(
            one.layer_runs, dtype=one.dtype, extent=Extent(samples=None, sweep_steps=SWEEP_STEPS)
        )
        taken = take(subject, chosen_measures(GROUPS), Faults(strict=True))
        verdicts.append(taken.verdict)
        reasons.update(taken.reasons)
        for found in taken.measurements:
            values = scale_free(found)
            if values is not None:
                numbers[f"{found.name}@{found.layer}"] = [_plain(x) for x in values.reshape(-1)]
    return {
        "layers": {run.name: f"T {run.T}, starts from {run.tie}" for run in runs},
        "dtype": str(runs[0].dtype).removeprefix("torch."),
        "inexact": reasons if "inexact" in verdicts else {},
        "numbers": numbers,
    }


def scale_free(found: Measurement) -> np.ndarray | None:
    """The values divided by the unit of the loss; None if the measurement is not compared."""
    values = np.asarray(found.values, dtype=np.float64)
    if found.name in AS_IT_IS:
        return values
    if found.name in FROM_LOGS:
        return np.asarray(np.exp(values))
    if found.name in BY_ITS_LARGEST:
        largest = np.nanmax(np.abs(values), initial=0.0)
        return values / largest if largest > 0 else values
    return None


def _plain(number: float) -> float | str:
    return float(number) if np.isfinite(number) else str(float(number))
