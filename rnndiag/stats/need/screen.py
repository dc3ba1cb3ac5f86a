"""The recorded screen, pooled over recordings: which lags does it point at?

U of one recording is noisy; over recordings z = Σ U / sqrt(Σ sd²) is about normal if the past does not help. The screen
is biased near a solved net, so it points at lags for `memory_need` to test and never alarms alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rnndiag.stats.need.flips import Array
from rnndiag.stats.need.numbers import P
from rnndiag.stats.need.stored import HasMeasurements
from rnndiag.store.quantities import NEED_SCREEN_KINDS
from rnndiag.store.text import counted

LEAST_EXPLAINED = 0.02
"""Peaks that explain less than this share of the error are ignored: the bias of the screen can be as large."""


@dataclass(frozen=True)
class ScreenCurve:
    """The pooled screen of one layer."""

    layer: str
    recordings: int
    lags: tuple[int, ...]
    explained: Array
    """(kind, lag): mean of U, the share of the error that a skip would explain; NaN where not measured."""
    z: Array
    """(kind, lag): the sum of U over recordings divided by its standard deviation."""

    @property
    def p(self) -> Array:
        """(kind, lag): one-sided p, Bonferroni-corrected for the number of kinds and lags."""
        # Imported here: a check of a run without a screen needs no scipy, and starts faster without it.
        from scipy.special import ndtr

        count = int(np.isfinite(self.z).sum())
        return np.asarray(np.minimum(1.0, ndtr(-self.z) * max(count, 1)))

    @property
    def peak(self) -> tuple[str, int] | None:
        """(kind, lag) of the most significant peak; None if there is none or its share is below LEAST_EXPLAINED."""
        known = (self.p <= P) & (self.explained >= LEAST_EXPLAINED)
        if not known.any():
            return None
        kind, lag = np.unravel_index(int(np.argmax(np.where(known, self.z, -np.inf))), known.shape)
        return NEED_SCREEN_KINDS[kind], self.lags[lag]

    @property
    def sentence(self) -> str:
        """A sentence on the peak that also says that the screen alone is no verdict."""
        over = counted(self.recordings, "recording")
        if self.peak is None:
            return f"The screen of {over} points at no past input of {self.layer}; that proves nothing."
        kind, lag = self.peak
        where = f"{lag} to {2 * lag - 1} steps" if kind == "bag" else counted(lag, "step")
        return (
            f"The screen of {over} points at inputs of {self.layer} {where} back, beyond what its state "
            "holds. It is no verdict: test it by rnndiag.memory_need, or need=True."
        )


def screens_in(recordings: Iterable[HasMeasurements]) -> tuple[ScreenCurve, ...]:
    """The pooled screens in recordings (a StoredRun is an iterable of them), one per layer."""
    cells: dict[str, dict[tuple[int, int], list[tuple[float, float]]]] = {}
    counts: dict[str, int] = {}
    for recording in recordings:
        for one in recording.measurements:
            if one.name != "need_screen":
                continue
            counts[one.layer] = counts.get(one.layer, 0) + 1
            found = cells.setdefault(one.layer, {})
            for kind, row in enumerate(np.asarray(one.values, float)):
                for lag, (explained, deviation) in zip(
                    one.coordinates["screen_lag"], row, strict=True
                ):
                    if math.isfinite(explained) and deviation > 0:
                        found.setdefault((kind, int(lag)), []).append((explained, deviation))
    return tuple(_pooled(layer, counts[layer], found) for layer, found in cells.items() if found)


def _pooled(
    layer: str, recordings: int, cells: dict[tuple[int, int], list[tuple[float, float]]]
) -> ScreenCurve:
    lags = tuple(sorted({lag for _, lag in cells}))
    explained = np.full((len(NEED_SCREEN_KINDS), len(lags)), np.nan)
    z = explained.copy()
    for (kind, lag), values in cells.items():
        u, deviation = np.asarray(values).T
        explained[kind, lags.index(lag)] = u.mean()
        z[kind, lags.index(lag)] = u.sum() / math.sqrt(float((deviation**2).sum()))
    return ScreenCurve(layer, recordings, lags, explained, z)
