"""Reduces tensors over time and samples to stored numbers: means and quantiles over valid samples."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.generic]


def array(values: Tensor) -> Array:
    """A tensor as numpy, on the CPU, in float32 or float64."""
    values = values.detach()
    if values.is_floating_point() and values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    found: Array = values.cpu().numpy()
    return found


def stats(values: Tensor, mask: Tensor) -> Array:
    """(T, B) and a mask of valid entries -> (T, 4): mean, 5, 50 and 95 % over samples; NaN if one of them is NaN."""
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    missing = torch.full_like(values, torch.nan)
    present = torch.where(mask, values, missing)
    mean = torch.where(mask, values, torch.zeros_like(values)).sum(1) / mask.sum(1)
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype, device=values.device)
    quantiles = torch.nanquantile(present, levels, dim=1)
    has_nan = (mask & values.isnan()).any(1)
    quantiles = torch.where(has_nan, missing[:, 0], quantiles)
    return array(torch.cat([mean[None], quantiles]).T)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(T, B) -> (T,): mean over valid samples."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum(1) / mask.sum(1)
