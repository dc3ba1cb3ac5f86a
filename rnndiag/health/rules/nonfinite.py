"""Entries that are not finite: the one number that must be zero everywhere, at every step."""

from __future__ import annotations

import numpy as np

from rnndiag.health.bounds import Bounds
from rnndiag.health.numbers import LayerNumbers, NotRecorded
from rnndiag.health.rule import RuleSeries, rule

_COUNTS = ("nonfinite_states", "nonfinite_adjoints")
_SCALARS = ("loss", "total_gradient_norm", "gradient_norm", "history_loss", "history_gradient_norm")
_PADDED = ("history_loss", "history_gradient_norm")


@rule(
    "nonfinite",
    meaning="entries of states and adjoints, losses and gradient norms that are not finite",
    statement="{value} numbers were not finite in the worst recording",
    too_low="",
    too_high="Lower the learning rate or clip the gradient norm, and look at the steps before the first bad one: "
    "the report names the layer and the time step.",
    rank=0,
    digits=0,
    owner="both",
    reduce="max",
    defaults=Bounds(max=0, window="all"),
    words=("", "NOT FINITE"),
    comparable=False,
)
def nonfinite(numbers: LayerNumbers) -> RuleSeries:
    """How many numbers of a recording are not finite."""
    total: dict[int, float] = {}
    for quantity in _COUNTS + _SCALARS:
        try:
            found = numbers.get(quantity)
        except NotRecorded:
            continue
        flat = found.values.reshape(len(found.steps), -1)
        if quantity in _COUNTS:
            with np.errstate(invalid="ignore"):  # a broken count may itself be inf and -inf
                bad = np.nansum(flat, axis=1)
        elif quantity in _PADDED:
            bad = _bad_in_history(numbers, quantity, flat)
        else:
            bad = np.sum(~np.isfinite(flat), axis=1)
        for step, count in zip(found.steps.tolist(), bad.tolist(), strict=True):
            total[step] = total.get(step, 0.0) + count
    if not total:
        raise NotRecorded(
            f"no count of values that are not finite was recorded for {numbers.layer}"
        )
    steps = np.array(sorted(total), dtype=np.int64)
    return RuleSeries(steps, np.array([total[step] for step in steps.tolist()]))


def _bad_in_history(numbers: LayerNumbers, quantity: str, flat: np.ndarray) -> np.ndarray:
    """Entries of the ring that are not finite, where its own step is a number (the rest is padding)."""
    real = np.isfinite(numbers.get("history_step").values.reshape(flat.shape[0], -1))
    known = (
        real[:, : flat.shape[1]]
        if real.shape[1] >= flat.shape[1]
        else np.ones_like(flat, dtype=bool)
    )
    return np.asarray(np.sum(~np.isfinite(flat) & known, axis=1))
