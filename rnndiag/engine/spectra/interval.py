"""How many steps may pass between two re-orthonormalisations, so that the frame stays well conditioned."""

from __future__ import annotations

from math import isfinite, log

import torch
from torch import Tensor

LOG_CONDITION = log(1e7)
"""The scales of a frame may drift apart by about this: 7 of float64's 16 digits."""

LONGEST = 50


class Interval:
    """A fixed interval, or one that grows by a step while the scales are expected to stay within the condition.

    An interval whose scales drifted further apart than that is never tried again.
    """

    def __init__(self, steps: int | None) -> None:
        self.fixed = steps is not None
        self.steps = steps or 1
        self.longest = 0
        self.log_condition = 0.0
        """The largest spread of ln |R_ii| at any re-orthonormalisation."""
        self._cap = LONGEST

    def see(self, log_scales: Tensor, steps: int) -> None:
        """log_scales (B, k): ln |R_ii| after `steps` steps, NaN for sequences that are over."""
        spread = float((log_scales.amax(-1) - log_scales.amin(-1)).max())
        if not isfinite(spread):
            spread = _finite_spread(log_scales)
        self.longest = max(self.longest, steps)
        self.log_condition = max(self.log_condition, spread)
        if self.fixed:
            return
        if spread > LOG_CONDITION:
            self._cap = max(1, min(self._cap, steps - 1))
        elif steps == self.steps and spread * (steps + 1) <= LOG_CONDITION * steps:
            self.steps = steps + 1
        self.steps = min(self.steps, self._cap)


def _finite_spread(log_scales: Tensor) -> float:
    """The largest spread of a sequence's finite scales; 0 where it has none."""
    known = log_scales.isfinite()
    high = log_scales.masked_fill(~known, -torch.inf).amax(-1)
    low = log_scales.masked_fill(~known, torch.inf).amin(-1)
    return float((high - low).clamp(min=0.0).max())
