"""The sequences of the batch with the largest share of the gradient, and the time steps where it arises."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rnndiag.engine.contributions import factors
from rnndiag.recorder.measures.measure import Analysis, Subject
from rnndiag.recorder.measures.pooling import array
from rnndiag.store.measurement import Measurement

MOST = 5
"""Number of sequences that are named."""
AT_ONCE = 32 * 2**20
"""Bytes for gradients of single sequences that are formed at the same time."""


def sequences(subject: Subject) -> Iterator[Measurement]:
    """The sequences with the largest |g_b| over all recurrent weights of all layers that share the batch."""
    if subject.extent.thrifty:
        subject.not_measured["sequence_gradient_norm"] = "left out, as the budget is short"
        return
    sizes: dict[int, list[int]] = {}
    for k, run in enumerate(subject.runs):
        if run.name not in subject.gathered:
            sizes.setdefault(run.B, []).append(k)
    if not sizes:
        subject.not_measured["sequence_gradient_norm"] = "calls of one step each are taken together"
        return
    batch = max(sizes, key=lambda size: (len(sizes[size]), size))
    chosen = [subject.analyses[k] for k in sizes[batch]]
    if batch < 2:
        subject.not_measured["sequence_gradient_norm"] = "the batch is one sequence"
        return
    square = torch.stack([_squares(analysis) for analysis in chosen]).sum(0)
    top = square.topk(min(MOST, batch))
    yield Measurement.of("sequence_gradient_norm", array(top.values.sqrt()))
    yield Measurement.of("sequence_index", array(top.indices))
    yield Measurement.of("sequence_peak_time", _peaks(chosen, top.indices))
    total = float(square.sum())
    subject.facts["sequence_share"] = [float(v) / total if total > 0 else 0.0 for v in top.values]


def _squares(analysis: Analysis) -> Tensor:
    """|g_b|² of every sequence (B,), over the matrix weights of one layer run."""
    found = [factors(analysis[0], key) for key in ("weight_ih", "weight_hh")]
    total = torch.zeros(analysis[0].run.B, dtype=torch.float64, device=analysis[0].run.device)
    for pair in found:
        if pair is None or pair.right is None:
            continue
        left, right = pair.left.movedim(0, 1), pair.right.movedim(0, 1)
        steps, rows, columns = left.shape[1], left.shape[2], right.shape[2]
        by_times = steps * (rows + columns) < rows * columns
        one = left.element_size() * (2 * steps * steps if by_times else rows * columns)
        size = max(1, AT_ONCE // one)
        squares = _by_times if by_times else _by_entries
        parts = zip(left.split(size), right.split(size), strict=True)
        total += torch.cat([squares(a, b) for a, b in parts])
    return total


def _by_entries(left: Tensor, right: Tensor) -> Tensor:
    """|Σ_t a_t x_tᵀ|² of factors (B, T, ...), (B,), by forming the gradient."""
    return (left.mT @ right).square_().sum((1, 2))


def _by_times(left: Tensor, right: Tensor) -> Tensor:
    """The same as Σ_ts (a_t·a_s)(x_t·x_s), which is cheaper for short sequences and many units."""
    return (left @ left.mT).mul_(right @ right.mT).sum((1, 2)).clamp_(min=0.0)


def _peaks(analyses: list[Analysis], chosen: Tensor) -> np.ndarray:
    """Time step with the largest contribution of each chosen sequence, over all layers."""
    tops = []
    for adj, _ in analyses:
        pair = factors(adj, "weight_hh")
        if pair is None or pair.right is None:
            continue
        size = pair.left[:, chosen].norm(dim=-1) * pair.right[:, chosen].norm(dim=-1)
        tops.append(size.max(0))
    if not tops:
        return np.zeros(len(chosen), np.int64)
    values = torch.stack([top.values for top in tops])
    times = torch.stack([top.indices for top in tops])
    return array(times.gather(0, values.argmax(0, keepdim=True))[0])
