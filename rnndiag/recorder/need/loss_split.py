"""Splits a change of the loss over sequences and time steps, given a scalar loss only.

The change L(Y0) - L(Y1) between two sets of outputs is the integral of -<e(Y0 + a D), D> over a in [0, 1] with D = Y1 -
Y0, and the inner product is a sum over sequences and steps, which defines their shares. The integral is computed by
Gauss-Legendre quadrature, doubling the nodes until the shares add up to the measured difference (completeness). This
holds for losses that are sums over sequences; a loss that mixes them (batch norm, contrastive) has no such split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rnndiag.recorder.need.output_loss import OutputLoss, Sample

TOLERANCE = 0.01
"""Largest relative gap between the sum of the shares and the measured difference."""
MOST_NODES = 32
LEAST_SPLIT = 1e-3
"""Differences below this share of the scale of the loss need no exact split."""


@dataclass(frozen=True)
class Split:
    """The shares of L(Y0) - L(Y1)."""

    shares: Tensor
    """(B, T); they sum to the measured difference."""
    nodes: int
    gap: float
    """|measured - sum of shares| relative to the measured difference, before it was distributed over the shares."""


def split_loss(
    loss: OutputLoss,
    sample: Sample,
    before: Tensor,
    after: Tensor,
    ends: tuple[float, float],
    least: float,
    tolerance: float = TOLERANCE,
    most_nodes: int = MOST_NODES,
) -> Split:
    """Split L(before) - L(after) over sequences and steps.

    Args:
        loss: The loss as a function of the outputs.
        sample: The batch.
        before: Outputs Y0, (B, T, H).
        after: Outputs Y1.
        ends: L(Y0) and L(Y1).
        least: Differences below this are held to the same error as one of this size.
        tolerance: Largest gap, relative to the difference.
        most_nodes: Where the doubling stops even if the shares do not add up.
    """
    change = after - before
    measured = ends[0] - ends[1]
    scale = max(abs(measured), least)
    nodes = 2
    while True:
        shares = torch.zeros(before.shape[:2], dtype=torch.float64, device=before.device)
        places, weights = np.polynomial.legendre.leggauss(nodes)
        for place, weight in zip(places.tolist(), weights.tolist(), strict=True):
            _, gradient = loss.gradient(sample, before + (0.5 + 0.5 * place) * change)
            shares -= 0.5 * weight * (gradient * change).sum(-1, dtype=torch.float64)
        gap = measured - float(shares.sum())
        if abs(gap) <= tolerance * scale or nodes >= most_nodes:
            break
        nodes *= 2
    size = shares.abs().sum()
    # Distribute the rest in proportion to the shares' sizes, so that they sum to the measured difference.
    if size > 0:
        shares = shares + gap * shares.abs() / size
    return Split(shares, nodes, abs(gap) / scale if scale > 0 else 0.0)
