"""Why a reach is short: the Jacobian shrinks the gradient, the loss needs no past, or a detach cuts it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.measures.pooling import Array
from rnndiag.stats.reach import decay, reach
from rnndiag.stats.time_words import TimeWords

_NO_WORDS = TimeWords()

SHORT = 0.5
"""A reach below this share of the number of steps is short."""
FADES = 0.1
"""The profile has decayed if its last measured lag is below this share of lag 0."""
NEGLIGIBLE = 1e-3
"""Direct gradients below this share of the largest are negligible."""


def cause_of(run: LayerRun, profile_log: Array, words: TimeWords = _NO_WORDS) -> dict[str, Any]:
    """{"kind": "decay" | "loss" | "detach" | "none", "sentence": ...} of one layer run."""
    found = reach(profile_log, steps=run.T)
    with_loss = _steps_with_loss(run)
    cut = run.tie.startswith("detached") or (run.tie == "given" and _started_elsewhere(run))
    faded = _faded(profile_log)
    if not with_loss.size:
        return _cause(
            "loss", f"No gradient of the loss reaches {run.name} at any of its {run.T} steps."
        )
    if faded and found.reached and found.value < SHORT * run.T:
        return _cause(
            "decay",
            f"The Jacobian of {run.name} changes the gradient by {decay(profile_log):.3g} a step, "
            f"so 90 % of it lies within {found.value:.1f} of {run.T} steps{words.in_brackets(found.value)}.",
        )
    furthest = int(with_loss.max()) + 1
    if furthest < SHORT * run.T:
        return _cause(
            "loss",
            f"The loss asks {run.name} only at its first {furthest} of {run.T} steps{words.in_brackets(furthest)}, "
            "so no gradient can reach further back than that.",
        )
    if cut and not faded:
        return _cause(
            "detach",
            f"{run.name} starts from a state that was detached: the gradient still has strength after "
            f"{run.T} steps{words.in_brackets(run.T)}, and the cut ends it there.",
        )
    if with_loss.size == 1 and run.T > 1:
        return _cause(
            "none",
            f"The loss asks {run.name} at step {furthest} only, and its gradient gets to the start.",
        )
    return _cause(
        "none",
        f"The gradient of {run.name} gets through its {run.T} steps{words.in_brackets(run.T)}.",
    )


def _cause(kind: str, sentence: str) -> dict[str, Any]:
    return {"kind": kind, "sentence": sentence}


def _steps_with_loss(run: LayerRun) -> np.ndarray:
    """Steps with a direct gradient that is not negligible."""
    size = torch.cat(run.direct, -1).double().norm(dim=-1).where(run.mask(), 0.0).amax(1)
    largest = float(size.max())
    if not largest > 0:
        return np.zeros(0, np.int64)
    found: np.ndarray = (size > NEGLIGIBLE * largest).nonzero().flatten().cpu().numpy()
    return found


def _started_elsewhere(run: LayerRun) -> bool:
    return any(bool(part.any()) for part in run.initial)


def _faded(profile_log: Array) -> bool:
    known = profile_log[~np.isnan(profile_log)]
    return bool(known.size > 1 and known[-1] < known[0] + np.log(FADES))
