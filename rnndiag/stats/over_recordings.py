"""Reductions over the recordings of a run, each made here and nowhere else.

Screen, report, checks and baseline show the same number because they call the same function: the median over
recordings, T of a layer, and the steps at which something was not finite.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rnndiag.errors import RunUnreadable
from rnndiag.store.reader import StoredRun

NONFINITE_COUNTS = ("nonfinite_states", "nonfinite_adjoints")
"""Quantities that count non-finite entries per time step of a layer."""


def median(values: Sequence[float] | np.ndarray) -> float:
    """The median; of two middle values of which one is infinite it is infinite, never NaN."""
    ordered = np.sort(np.asarray(values, np.float64))
    low, high = float(ordered[(len(ordered) - 1) // 2]), float(ordered[len(ordered) // 2])
    return low if low == high else 0.5 * (low + high)


def median_over_recordings(values: np.ndarray) -> np.ndarray:
    """Median over recordings (first axis), ignoring NaN; NaN where all are NaN."""
    values = np.asarray(values, np.float64)
    count = (~np.isnan(values)).sum(0)
    ordered = np.sort(values, axis=0)  # NaN last
    middle = np.stack([(count - 1) // 2, count // 2]).clip(min=0)
    with np.errstate(invalid="ignore"):
        low, high = np.take_along_axis(ordered, middle, axis=0)
        found: np.ndarray = np.where(low == high, low, (low + high) / 2)
    return found


def lengths_of(run: StoredRun, layer: str, steps: Sequence[int] | np.ndarray) -> list[int | None]:
    """T at each of these training steps: the number of lags, measured or not; None where it was not recorded."""
    series = run.find("valid_samples", layer, steps)
    if series is None or "time" not in series.lengths:
        return [None] * len(steps)
    length = dict(zip(series.steps.tolist(), series.lengths["time"].tolist(), strict=True))
    return [length.get(int(step)) for step in steps]


def longest(run: StoredRun, layer: str, steps: Sequence[int] | np.ndarray) -> int | None:
    """T of a layer: the longest sequence among these recordings; None if it was not recorded."""
    return max((n for n in lengths_of(run, layer, steps) if n is not None), default=None)


def of_several_steps(
    run: StoredRun, layers: Sequence[str], steps: Sequence[int] | np.ndarray
) -> tuple[str, ...]:
    """The layers with more than one step; a call on a begin-of-sequence token alone has no lags.

    All layers if none has more.
    """
    return tuple(name for name in layers if longest(run, name, steps) != 1) or tuple(layers)


def nonfinite_counts(run: StoredRun, layer: str) -> dict[int, int]:
    """Training step -> number of non-finite entries of the layer's states and adjoints there."""
    found: dict[int, int] = {}
    for quantity in NONFINITE_COUNTS:
        try:
            series = run.find(quantity, layer)
        except RunUnreadable:
            continue
        if series is None:
            continue
        flat = np.nan_to_num(np.asarray(series.values, np.float64), posinf=1e18, neginf=1e18)
        counts = np.abs(flat.reshape(len(series.steps), -1)).sum(1)
        for step, count in zip(series.steps.tolist(), counts.tolist(), strict=True):
            found[step] = found.get(step, 0) + int(min(count, 1e18))
    return found
