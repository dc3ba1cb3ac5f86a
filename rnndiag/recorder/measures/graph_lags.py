"""Converts measurements on the user's graph to the quantities of a replayed layer run."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from rnndiag.engine.segments.measure import LoopMeasurement
from rnndiag.engine.truncation.sweep.credit import Credit, log_matrix, profile_of
from rnndiag.recorder.measures.coarse import coarse
from rnndiag.recorder.measures.pooling import Array, array, stats
from rnndiag.store.measurement import Measurement


def graph_lags(found: LoopMeasurement, scale: float) -> Iterator[Measurement]:
    """Credit and windows of one loop. scale: the loss scale, by which values are divided."""
    name = found.name
    credit = _credit(found)
    profile = profile_of(credit)
    reached = max(1, profile.reached)
    rows = torch.cat([profile.log[None], profile.log_quantiles]).T[:reached]
    yield Measurement.of("credit_profile", array(rows), name)
    yield Measurement.of("reach_error", np.asarray(0.0), name)
    matrix = log_matrix(credit) - math.log(scale)
    yield coarse("credit_matrix", array(matrix), name)
    windows = {"lag": tuple(map(str, range(len(found.window_bias))))}
    for quantity in ("window_bias", "window_cosine", "window_progress"):
        yield Measurement.of(
            quantity, array(getattr(found, quantity)), name, windows, keep_dtype=True
        )
    tails, lags = (_table(part, scale) for part in (found.tail_norms, found.lag_gradient_norms))
    keys = {"parameter": tuple(found.tail_norms)}
    yield Measurement.of("tail_norm", tails, name, {**keys, **windows}, keep_dtype=True)
    yield Measurement.of("lag_gradient_norm", lags, name, keys)
    yield Measurement.of("full_gradient_norm", np.asarray(found.gradient_norm / scale), name)


def graph_contributions(found: LoopMeasurement, scale: float) -> Iterator[Measurement]:
    """Norms of gradients, adjoints and contributions by step, with the residual of their sum law."""
    name = found.name
    mask = torch.ones_like(found.adjoint_norm, dtype=torch.bool)
    for quantity, size in (
        ("direct_gradient_norm", found.direct_norm),
        ("adjoint_norm", found.adjoint_norm),
    ):
        yield Measurement.of(quantity, stats(size / scale, mask), name, keep_dtype=True)
    yield Measurement.of("valid_samples", array(mask.sum(1)), name)
    keys = {"parameter": tuple(found.contribution_norm)}
    if found.contribution_norm:
        norms = _table(found.contribution_norm, scale)
        yield Measurement.of("contribution_norm", norms, name, keys)
        cosines = _table(found.contribution_alignment, 1.0)
        yield Measurement.of("contribution_alignment", cosines, name, keys)
    residual = np.asarray([found.residual[key] for key in found.parameters])
    yield Measurement.of("residual", residual, name, {"parameter": found.parameters})


def _table(by_parameter: dict[str, torch.Tensor], scale: float) -> Array:
    return array(torch.stack(list(by_parameter.values())) / scale)


def _credit(found: LoopMeasurement) -> Credit:
    """The credit in the form of an exact sweep over a replayed layer run."""
    table = found.log_credit
    with_loss = torch.isfinite(table[:, 0]).nonzero().flatten()
    return Credit(table, with_loss, None)
