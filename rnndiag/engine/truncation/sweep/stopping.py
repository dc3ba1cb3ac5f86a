"""Stopping rule of a sampled credit profile.

The sampled losses move back by one step per lag and may stop once the credit at longer lags is negligible. Credit at
lag d is measured as the profile measures it: over the rows (losses) that still have a state d steps back, relative to
what the same rows had at lag 0. Comparing with all rows would stop too early where many losses lie near the start of a
sequence.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rnndiag.engine.truncation.sweep import sampling
from rnndiag.engine.truncation.sweep.lag_cotangents import Lag, Rows, output_steps

TEST_EVERY = 4
"""Test for stopping at every fourth lag only: one test costs about as much as moving on by one lag."""


class StoppingRule:
    """Accumulates the credit seen so far; stops when the remaining lags could add less than `sampling.LEFT_OUT` of it.

    Args:
        rows: The sampled losses.
        n_lags: Number of lags that the whole sweep would have.
    """

    def __init__(self, rows: Rows, n_lags: int) -> None:
        self._output_steps = output_steps(rows)
        self._n_lags = n_lags
        self._log_norm_at_lag_0: Tensor | None = None  # (K, N)
        self._log_credit_seen = -math.inf

    def should_stop(self, lag: Lag) -> bool:
        """True if the lags beyond `lag` can hold at most LEFT_OUT of the credit, if it does not grow again."""
        if self._log_norm_at_lag_0 is None:
            self._log_norm_at_lag_0 = lag.log_norm
        lags_since_last_test = 1 if lag.d < TEST_EVERY else TEST_EVERY
        if (lag.d + 1) % lags_since_last_test:
            return False
        alive = self._output_steps[lag.first :] >= lag.d
        log_base = torch.where(alive, self._log_norm_at_lag_0[lag.first :], -math.inf)
        log_total = lag.log_norm.logsumexp((0, 1)) if lag.size is None else lag.size.sum().log()
        log_credit = float(log_total - log_base.logsumexp((0, 1)))
        if math.isnan(log_credit) or log_credit == math.inf:
            return False
        log_seen_since = log_credit + math.log(lags_since_last_test)
        self._log_credit_seen = float(np.logaddexp(self._log_credit_seen, log_seen_since))
        remaining = self._n_lags - lag.d - 1
        if remaining == 0:
            return False
        # Bound: every remaining lag holds as much as this one.
        log_bound = log_credit + math.log(remaining)
        return log_bound <= math.log(sampling.LEFT_OUT) + self._log_credit_seen
