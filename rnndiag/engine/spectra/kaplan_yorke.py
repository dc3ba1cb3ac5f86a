"""Kaplan-Yorke dimension: how many directions it takes until growth and decay cancel."""

from __future__ import annotations

import torch
from torch import Tensor


def kaplan_yorke(exponents: Tensor, complete: bool) -> float:
    """j + Σ_{i<=j} λ_i / |λ_{j+1}|, j the last index with a sum >= 0; `exponents` (k,) in descending order.

    0 where λ_1 < 0. Where no sum turns negative: the number of exponents if they are all there are (`complete`), else
    NaN, because more exponents are needed to tell.
    """
    values = exponents.double().cpu()
    sums = values.cumsum(0)
    below = (sums < 0).nonzero()
    if len(below) == 0:
        return float(len(values)) if complete else float("nan")
    j = int(below[0])
    if j == 0:
        return 0.0
    return j + float(sums[j - 1] / values[j].abs())


def descending(exponents: Tensor) -> Tensor:
    """Order of the exponents (k,), largest first; equal ones stay as they are."""
    return torch.sort(exponents, descending=True, stable=True).indices
