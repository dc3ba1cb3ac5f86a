"""How many steps may pass between two re-orthonormalisations, so that the frame stays well conditioned."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

LOG_CONDITION = log(1e5)
"""The scales of a frame are to drift apart by at most about this: 5 of float64's 16 digits."""

LONGEST = 50


class Interval:
    """A fixed interval, or as many steps as the fastest spread of scales seen so far allows."""

    def __init__(self, steps: int | None) -> None:
        self.fixed = steps is not None
        self.steps = steps or 1
        self.longest = 0
        self.log_condition = 0.0
        """The largest spread of ln |R_ii| at any re-orthonormalisation."""
        self._growth = LOG_CONDITION / LONGEST

    def see(self, log_scales: Tensor, steps: int) -> None:
        """log_scales (B, k): ln |R_ii| after `steps` steps, NaN for sequences that are over."""
        known = log_scales.isfinite()
        high = log_scales.masked_fill(~known, -torch.inf).amax(-1)
        low = log_scales.masked_fill(~known, torch.inf).amin(-1)
        spread = float((high - low).clamp(min=0.0).max())
        self.longest = max(self.longest, steps)
        self.log_condition = max(self.log_condition, spread)
        self._growth = max(self._growth, spread / steps)
        if not self.fixed:
            self.steps = max(1, min(int(LOG_CONDITION / self._growth), 2 * steps))
