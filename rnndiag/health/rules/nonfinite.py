"""Rule: non-finite entries, which must be zero everywhere at every step."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from rnndiag.health.bounds import Bounds
from rnndiag.health.numbers import LayerNumbers, NotRecorded
from rnndiag.health.rule import RuleSeries, rule
from rnndiag.stats.over_recordings import NONFINITE_COUNTS as _COUNTS
from rnndiag.store.quantities import MODEL

_SCALARS = ("loss", "total_gradient_norm", "gradient_norm", "history_loss", "history_gradient_norm")
_PADDED = ("history_loss", "history_gradient_norm")


@rule(
    "nonfinite",
    meaning="entries of states and adjoints, losses and gradient norms that are not finite",
    statement="{value} numbers were not finite in the worst recording",
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
    """Number of non-finite entries, per recording."""
    total: dict[int, float] = {}
    for quantity in (*_COUNTS, *_SCALARS):
        with suppress(NotRecorded):
            _add(total, *_counted(numbers, quantity))
    if numbers.layer != MODEL:
        with suppress(NotRecorded):
            _add(total, *_profiles_without_a_number(numbers))
    if not total:
        raise NotRecorded(
            f"no count of values that are not finite was recorded for {numbers.layer}"
        )
    steps = np.array(sorted(total), dtype=np.int64)
    return RuleSeries(steps, np.array([total[step] for step in steps.tolist()]))


def _add(total: dict[int, float], steps: np.ndarray, counts: np.ndarray) -> None:
    for step, count in zip(steps.tolist(), counts.tolist(), strict=True):
        total[step] = total.get(step, 0.0) + count


def _counted(numbers: LayerNumbers, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps of a quantity, and its number of non-finite entries at each."""
    found = numbers.get(quantity)
    flat = found.values.reshape(len(found.steps), -1)
    if quantity in _COUNTS:
        return found.steps, np.nansum(np.abs(flat), axis=1)  # a broken count may be inf, or below 0
    bad = ~np.isfinite(flat)
    if quantity in _PADDED:
        bad &= _is_entry(numbers, found.steps, flat.shape)
    return found.steps, np.sum(bad, axis=1).astype(float)


def _is_entry(numbers: LayerNumbers, steps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which slots of a ring of training steps hold an entry: those whose step is a number. The rest is padding."""
    ring = numbers.get("history_step")
    rows = ring.values.reshape(len(ring.steps), -1)
    known = np.ones(shape, dtype=bool)
    place = {step: row for row, step in enumerate(ring.steps.tolist())}
    for row, step in enumerate(steps.tolist()):
        if step in place:
            entries = np.isfinite(rows[place[step]])[: shape[1]]
            known[row, : len(entries)] = entries
            known[row, len(entries) :] = False
    return known


def _profiles_without_a_number(numbers: LayerNumbers) -> tuple[np.ndarray, np.ndarray]:
    """Credit profiles with an infinity, or all NaN although a gradient reached the layer: steps and counts."""
    found = numbers.profiles()
    empty = np.isnan(found.values).all(axis=1)
    return found.steps, (empty | np.isposinf(found.values).any(axis=1)).astype(float)
