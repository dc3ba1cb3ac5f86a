"""The recommended chunk size: the smallest from which on all measured chunk sizes keep the bias within bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rnndiag.stats.over_recordings import median_over_recordings
from rnndiag.stats.window import EPSILON, Recommendation, smallest_window, systematic_bias

if TYPE_CHECKING:
    from rnndiag.store.reader import StoredRun


def recommended_chunk(
    run: StoredRun, name: str, steps: Sequence[int], epsilon: float = EPSILON
) -> Recommendation | None:
    """The chunk size of a layer or stack over these recordings: by systematic bias if resolved; None if none was
    measured.

    The bias of chunks falls with 1/k, not geometrically, so nothing is extrapolated or interpolated.
    """
    sizes, bias = (run.find(f"chunk_{key}", name, steps) for key in ("size", "bias"))
    if sizes is None or bias is None or sizes.values.shape[1:] != bias.values.shape[1:]:
        return None
    same = (sizes.values == sizes.values[-1]).all(1)
    known = sizes.values[-1]
    tail, whole = (
        run.find(quantity, name, steps)
        for quantity in ("chunk_mean_square", "gradient_mean_square")
    )
    if tail is not None and whole is not None and tail.values.shape == bias.values.shape:
        pooled = systematic_bias(
            np.column_stack([whole.values, tail.values])[same], whole.values[same]
        )
        sure = pooled.resolved and bool(np.all(pooled.square_error[1:] <= epsilon**2))
        if sure:
            found = smallest_window(
                pooled.bias[1:], epsilon, known, interpolate=False, source="systematic"
            )
            return _measured(found, int(same.sum()))
    typical = median_over_recordings(bias.values[same])
    found = smallest_window(typical, epsilon, known, interpolate=False)
    return _measured(found, int(same.sum()))


def _measured(found: Recommendation, recordings: int) -> Recommendation:
    """The recommendation as a chunk size, with an extrapolated number replaced by inf."""
    steps = math.inf if found.extrapolated else found.steps
    return replace(
        found, steps=steps, extrapolated=False, recordings=recordings, what="chunk", note=found.note
    )
