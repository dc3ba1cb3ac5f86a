"""When a sampled sweep may end: where next to nothing of the credit can lie further back."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rnndiag.engine.truncation.sweep import sampling
from rnndiag.engine.truncation.sweep.lag_cotangents import Lag, Rows, starts

EVERY = 4
"""From so many lags on it is looked at only every so many: to look costs as much as to go on."""


class StoppingRule:
    """Follows ln Σ |a^d| of the rows that are alive, over what the same rows had at lag 0, as the profile does."""

    def __init__(self, rows: Rows, lags: int) -> None:
        self.starts, self.lags = starts(rows), lags
        self.first: Tensor | None = None
        self.so_far = -math.inf

    def after(self, lag: Lag) -> bool:
        """Whether at most `sampling.LEFT_OUT` of the credit lies beyond this lag, were it to fall no more."""
        if self.first is None:
            self.first = lag.log_norm
        stands_for = 1 if lag.d < EVERY else EVERY
        if (lag.d + 1) % stands_for:
            return False
        alive = self.starts[lag.first :] >= lag.d
        base = torch.where(alive, self.first[lag.first :], -math.inf).logsumexp((0, 1))
        total = lag.log_norm.logsumexp((0, 1)) if lag.size is None else lag.size.sum().log()
        now = float(total - base)
        if math.isnan(now) or now == math.inf:
            return False
        self.so_far = float(np.logaddexp(self.so_far, now + math.log(stands_for)))
        rest = self.lags - lag.d - 1
        return rest > 0 and now + math.log(rest) <= math.log(sampling.LEFT_OUT) + self.so_far
