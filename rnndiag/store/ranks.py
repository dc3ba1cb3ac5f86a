"""Pools the same step of several ranks, samples of one batch, into one recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rnndiag.store.align import Aligned, align
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import QUANTITIES, Pool
from rnndiag.store.recording import VERDICTS, Recording

POOLING: dict[Pool, str] = {
    "mean": "the mean over ranks",
    "log mean": "the mean of the logs over ranks",
    "sum": "the sum over ranks",
    "worst": "the largest over ranks",
    "error": "the standard error of the mean over ranks",
    "lowest rank": "of the lowest rank alone: it cannot be averaged",
}
"""How ranks are pooled, in words. Entries are averaged over the ranks that have them; NaN in one rank stays NaN."""


def pool_of(name: str) -> Pool:
    """How a quantity is pooled over ranks."""
    known = QUANTITIES.get(name)
    return known.pool if known else "mean"


def pooled(measurements: Sequence[Measurement]) -> Measurement:
    """Pool measurements of one quantity and step over ranks."""
    first = measurements[0]
    if len(measurements) == 1 or pool_of(first.name) == "lowest rank":
        return first
    aligned = align(measurements)
    values = _pool(aligned, pool_of(first.name), first.scale == "log")
    return replace(first, values=values, coordinates=aligned.coordinates)


def _pool(aligned: Aligned, how: Pool, log: bool) -> np.ndarray:
    values = aligned.values
    kind = values.dtype if values.dtype.kind in "fc" else np.dtype(np.float64)
    wide = values.astype(np.complex128 if kind.kind == "c" else np.float64)
    here = np.ones(values.shape, bool) if aligned.valid is None else aligned.valid
    count = here.sum(0)
    with np.errstate(all="ignore"):
        if how == "sum":
            result = np.where(here, wide, 0).sum(0)
        elif how == "worst":
            result = np.where(here, wide, -np.inf).max(0)
        elif how == "error":
            result = np.sqrt(np.where(here, wide**2, 0).sum(0)) / count
        elif how == "mean" and log:
            top = np.where(here, wide, -np.inf).max(0)
            base = np.where(np.isfinite(top), top, 0.0)
            result = base + np.log(np.where(here, np.exp(wide - base), 0.0).sum(0) / count)
            result = np.where(np.isposinf(top), top, result)
        else:
            result = np.where(here, wide, 0).sum(0) / count
        result = np.where(count > 0, result, np.nan)
        return np.asarray(result).astype(kind)


def pooled_recording(recordings: Sequence[Recording]) -> Recording:
    """Pool the recordings of one step and phase over ranks: the worst verdict, notes of the lowest rank."""
    first = recordings[0]
    if len(recordings) == 1:
        return first
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for recording in recordings:
        for m in recording.measurements:
            groups.setdefault((m.name, m.layer), []).append(m)
    reasons: dict[str, str] = {}
    for recording in recordings:
        for layer, reason in recording.reasons.items():
            reasons.setdefault(layer, f"rank {recording.rank}: {reason}")
    return replace(
        first,
        verdict=max((r.verdict for r in recordings), key=VERDICTS.index),
        reasons=reasons,
        measurements=tuple(pooled(group) for group in groups.values()),
        ranks=tuple(r.rank for r in recordings),
    )
