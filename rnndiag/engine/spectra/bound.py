"""The textbook's bound |ds_t/ds_k| <= Π σ(D_j) σ(W_hh), for cells h = φ(a): what one reads off without the products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra.tangents import Tangents, stretches


@torch.no_grad()
def textbook_bound(run: LayerRun, lags: Sequence[int], anchors: Sequence[int]) -> Tensor | None:
    """ln Π_{j=k+1..k+d} σ(D_j) σ(W_hh) for lags d, anchors k and sequences: (D, A, B) float64; NaN past T.

    None where the cell is not of the form h = φ(a). σ(D_j) is the largest |φ'| over units: -inf where all are at rest.
    """
    if run.cell.derivative is None:
        return None
    slope = torch.cat([_largest_slope(held) for _, held in stretches(run, torch.float64)]).log()
    weight = torch.linalg.matrix_norm(run.weights["weight_hh"].double(), 2).log()
    per_step = slope + weight
    columns = []
    for lag in lags:
        rows = [
            per_step[k : k + lag].sum(0)
            if k + lag <= run.T
            else torch.full_like(per_step[0], torch.nan)
            for k in anchors
        ]
        columns.append(torch.stack(rows))
    return torch.stack(columns)


def _largest_slope(held: Tangents) -> Tensor:
    """σ(D_j) (T', B), of the same derivatives as the products it bounds: recorded h near ±1 have too few digits."""
    assert held.diagonal is not None
    by_gate = held.diagonal.a_hh[0]
    assert by_gate is not None
    return by_gate.abs().amax((-2, -1))
