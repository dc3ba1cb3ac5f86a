"""Mean and 5, 50 and 95 % quantiles of the values that are not NaN."""

from __future__ import annotations

import torch
from torch import Tensor

QUANTILES = (0.05, 0.5, 0.95)


def four_numbers(values: Tensor) -> Tensor:
    """(..., N) -> (..., 4): mean, 5, 50 and 95 % quantile over the last axis.

    NaN means 'does not exist' and is ignored; all NaN gives NaN. -inf (the logarithm of an exact zero) is a value like
    any other.
    """
    missing = values.isnan()
    count = (~missing).sum(-1)
    mean = values.masked_fill(missing, 0.0).sum(-1) / count
    ordered = values.masked_fill(missing, torch.inf).sort(-1).values
    last = (count - 1).clamp(min=0)
    columns = [mean]
    for share in QUANTILES:
        position = last * share
        below = position.floor()
        low = ordered.gather(-1, below.long().unsqueeze(-1)).squeeze(-1)
        high = ordered.gather(-1, position.ceil().long().unsqueeze(-1)).squeeze(-1)
        weight = (position - below).to(values.dtype)
        between = low + weight * (high - low)
        exact = (weight == 0) | (low == high) | low.isinf()
        columns.append(torch.where(exact, low, between))
    result = torch.stack(columns, -1)
    return result.masked_fill((count == 0).unsqueeze(-1), torch.nan)
