"""The textbook's bound |ds_t/ds_k| <= Π σ(D_j) σ(W_hh), for cells h = φ(a): what one reads off without the products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun


@torch.no_grad()
def textbook_bound(run: LayerRun, lags: Sequence[int], anchors: Sequence[int]) -> Tensor | None:
    """ln Π_{j=k+1..k+d} σ(D_j) σ(W_hh) for lags d, anchors k and sequences: (D, A, B) float64; NaN past T.

    None where the cell is not of the form h = φ(a). σ(D_j) is the largest |φ'| over units: -inf where all are at rest.
    """
    if run.cell.derivative is None:
        return None
    h = run.states[0].double()
    slope = run.cell.derivative(h).abs().amax(-1).log()
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
