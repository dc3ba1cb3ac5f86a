"""Rule: one layer, or one gate, that has nearly all of the gradient."""

from __future__ import annotations

import numpy as np

from rnndiag.health.numbers import DoesNotApply, LayerNumbers, NotRecorded
from rnndiag.health.rule import RuleSeries, rule
from rnndiag.store.quantities import MODEL


@rule(
    "imbalance",
    meaning="the largest share that one gate has of its layer's gradient, or one layer of the model's",
    statement="the largest part carries {percent} of the gradient",
    too_high="The other parts hardly learn: look at saturated gates, at the scale of the layers' inputs, "
    "and at residual or normalised connections between layers.",
    floor=0.5,
    rank=50,
    percent=True,
    owner="both",
    typical=lambda numbers: (None, 0.98),
    words=("", "ONE PART CARRIES ALL"),
)
def imbalance(numbers: LayerNumbers) -> RuleSeries:
    """Largest share of the gradient norm among the gates of a layer, or among the layers of the model."""
    if numbers.layer == MODEL:
        return _among_layers(numbers)
    found = numbers.get("gate_contribution_norm")
    if len(found.coordinates.get("gate", ())) < 2:
        raise DoesNotApply(f"{numbers.layer} has one gate only")
    if "time" not in found.dims:
        raise NotRecorded("the contributions of the gates are not stored by time")
    axis = 1 + found.dims.index("time")
    per_gate = np.nansum(found.values, axis=axis)  # shorter sequences are padded with NaN
    per_gate[np.isnan(found.values).all(axis=axis)] = np.nan
    return _largest_share(found.steps, per_gate, numbers.layer)


def _among_layers(numbers: LayerNumbers) -> RuleSeries:
    stacks = [numbers.whole.stack("gradient_norm", layer) for layer in numbers.whole.layers]
    if len(stacks) < 2:
        raise DoesNotApply("the model has one recurrent layer only")
    steps = np.array(
        sorted(set.intersection(*(set(s.steps.tolist()) for s in stacks))), dtype=np.int64
    )
    if len(steps) == 0:
        raise NotRecorded("no recording holds the gradient of every layer")
    norms = [
        np.sqrt(np.nansum(s.values[np.isin(s.steps, steps)].reshape(len(steps), -1) ** 2, axis=1))
        for s in stacks
    ]
    return _largest_share(steps, np.stack(norms, axis=1), numbers.layer)


def _largest_share(steps: np.ndarray, norms: np.ndarray, layer: str) -> RuleSeries:
    """Largest entry over the sum of norms (n, parts), at the steps where a gradient arrives."""
    arrives = ~np.all(norms == 0, axis=1)
    if not arrives.any():
        raise DoesNotApply(f"no gradient arrives at {layer}")
    some = norms[arrives]
    with np.errstate(invalid="ignore"):
        return RuleSeries(steps[arrives], np.max(some, axis=1) / np.sum(some, axis=1))
