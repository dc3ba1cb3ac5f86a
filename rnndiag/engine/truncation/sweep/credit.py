"""The credit matrix and its profile over lag, in natural logarithms, so that nothing under- or overflows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.chains.stack import Runs, chain_of
from rnndiag.engine.truncation.sweep.lag_cotangents import (
    Lag,
    Rows,
    lag_cotangents,
    output_steps,
    rows_of,
)
from rnndiag.errors import require_whole

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles over outputs that are reported with a profile."""


@dataclass(frozen=True)
class Credit:
    """Credit by output and lag, natural logarithms."""

    by_lag: Tensor
    """ln C[u, u-d], (T, D), by output u and lag d; NaN for outputs whose loss was not followed."""
    outputs: Tensor
    """The output steps with a loss that were followed, ascending."""
    weights: Tensor | None
    """(T,): number of output steps that each followed one represents; None: 1."""


class CreditAccumulator:
    """Collects ln C[u, u-d] by output u and lag d, one lag at a time.

    Args:
        chain: The chain that is swept.
        rows: The losses that are followed.
        lags: Number of lags at most.
        weights: (T,), number of output steps that each followed one represents; None: every loss is followed.
    """

    def __init__(self, chain: Chain, rows: Rows, lags: int, weights: Tensor | None = None) -> None:
        T, device = chain.T, chain.direct[0].device
        self.rows, self.output_steps = rows, output_steps(rows)
        self.weights = weights
        self.outputs = self.output_steps[self.output_steps >= 0].unique()
        self._log_count = chain.mask().sum(1).clamp(min=1).double().log()
        self._by_output = torch.full((lags, T), math.nan, dtype=torch.float64, device=device)
        # Sums, not logarithms: one logarithm of the whole table at the end is cheaper than one per lag.
        self._sum_lags: list[int] = []

    def add(self, lag: Lag) -> None:
        """Add the credit of one lag."""
        steps = self.output_steps[lag.first :]
        packed = steps.shape[1] > 1
        if lag.size is not None and not packed:
            self._sum_lags.append(lag.d)
            self._by_output[lag.d].index_copy_(0, steps[:, 0], lag.size.sum(1))
            return
        logs = lag.log_norm
        if not packed:
            self._by_output[lag.d].index_copy_(0, steps[:, 0], logs.logsumexp(1))
            return
        at = self.outputs[self.outputs >= lag.d]
        logs = torch.where(steps >= lag.d, logs, -math.inf).flatten()
        found = _logsumexp_at(logs, steps.flatten().clamp(min=0), self._by_output.shape[1])
        self._by_output[lag.d, at] = found[at]

    def finish(self, lags: int) -> Credit:
        """The credit of the first `lags` lags, averaged over the sequences with a step there."""
        by_output = self._by_output[:lags].clone()
        is_sum = torch.zeros(len(by_output), dtype=torch.bool, device=by_output.device)
        is_sum[self._sum_lags] = True
        by_output[is_sum] = by_output[is_sum].log()
        by_output -= self._log_count
        return Credit(by_output.T, self.outputs, self.weights)


def _logsumexp_at(logs: Tensor, index: Tensor, size: int) -> Tensor:
    top = torch.full((size,), -math.inf, dtype=logs.dtype, device=logs.device)
    top = top.scatter_reduce(0, index, logs, "amax")
    safe = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    sums = torch.zeros_like(top).index_add(0, index, (logs - safe[index]).exp())
    return safe + sums.log()


@dataclass(frozen=True)
class Profile:
    """The credit profile over lag, natural logarithms."""

    log: Tensor
    """ln profile(d), (D,); NaN for lags that no output reaches."""
    log_quantiles: Tensor
    """ln of the quantiles over outputs of C[u, u-d] / C[u, u], (5, D)."""
    error: Tensor
    """Relative standard error of profile(d) from sampling, (D,); 0 if every loss was followed."""
    reached: int = 0
    """Number of lags that some output reaches within its sequence; the profile is NaN beyond."""
    without_one: Tensor | None = None
    """(K, D): ln profile without each of the K sampled output steps in turn, for the jackknife; None: not sampled."""
    unsampled: float = 0.0
    """Share of the output steps that was not followed."""


def profile_of(credit: Credit, unsampled: float = 0.0) -> Profile:
    """profile(d) = Σ_{u>=d} C[u, u-d] / Σ_{u>=d} C[u, u], and quantiles over the same outputs u = 0 .. T-1.

    Args:
        credit: Credit by output and lag.
        unsampled: Share of the output steps that was not followed.
    """
    outputs = credit.outputs
    table = credit.by_lag[outputs]
    weight = credit.weights
    log_weight = torch.zeros_like(table[:, 0]) if weight is None else weight[outputs].double().log()
    lags = torch.arange(table.shape[1], device=table.device)
    reached = outputs[:, None] >= lags[None, :]
    base = torch.where(reached, table[:, :1], -math.inf)
    top = torch.where(reached, table, -math.inf)
    over, under = (v + log_weight[:, None] for v in (top, base))
    log = over.logsumexp(0) - under.logsumexp(0)
    log = torch.where(reached.any(0), log, math.nan)
    quantiles = _log_quantiles(table - table[:, :1], reached)
    n_reached = int(reached.any(0).sum())
    if not unsampled:
        return Profile(log, quantiles, torch.zeros_like(log), n_reached)
    error = _ratio_error(over.T, under.T, unsampled)
    without_one = _without_one(over.T, under.T)
    return Profile(log, quantiles, error, n_reached, without_one, unsampled)


def _log_quantiles(logs: Tensor, reached: Tensor) -> Tensor:
    """ln of linearly interpolated quantiles over the first axis of exp(logs), (5, D), at lags that were reached."""
    if not len(logs):  # no output carries a loss
        return logs.new_full((len(QUANTILES), logs.shape[1]), math.nan)
    counted = reached & ~torch.isnan(logs)
    values = torch.where(counted, logs, math.inf).sort(0).values
    last = counted.sum(0) - 1
    levels = torch.tensor(QUANTILES, dtype=torch.float64, device=logs.device)
    place = levels[:, None] * last.clamp(min=0)
    low = place.floor().long()
    high = torch.minimum(low + 1, last.clamp(min=0))
    share = place - low
    under, over = values.gather(0, low), values.gather(0, high)
    found = torch.logaddexp(under + torch.log1p(-share), over + share.log())
    return torch.where(last >= 0, found, math.nan)


def _ratio_error(over: Tensor, under: Tensor, unsampled: float) -> Tensor:
    """Relative standard error of Σ over / Σ under, both (D, K) logarithms, by linearised residuals."""
    units = (~torch.isneginf(under)).sum(1)
    factor = torch.where(units > 1, unsampled * units / (units - 1), math.nan)
    share_over = (over - over.logsumexp(1, keepdim=True)).exp()
    share_under = (under - under.logsumexp(1, keepdim=True)).exp()
    residual = (share_over - share_under).square().sum(1)
    return (factor * residual).sqrt()


def _without_one(over: Tensor, under: Tensor) -> Tensor:
    """ln (Σ over / Σ under) without each of the K units in turn, both (D, K) logarithms: (K, D)."""
    top, base = (_log_sums_without(part) for part in (over, under))
    return torch.where(torch.isneginf(base), math.nan, top - base).T


def _log_sums_without(logs: Tensor) -> Tensor:
    """ln of Σ exp over the K units of (D, K) without each of them in turn, (D, K)."""
    if not logs.shape[1]:
        return logs
    largest, at = logs.max(1, keepdim=True)
    safe = torch.where(torch.isfinite(largest), largest, 0.0)
    parts = (logs - safe).exp()
    rest = parts.sum(1, keepdim=True) - parts
    # Sum minus term cancels only for the largest term, which may dominate: sum the others for it directly.
    without_largest = logs.scatter(1, at, -math.inf).logsumexp(1, keepdim=True)
    return (safe + rest.clamp(min=0).log()).scatter(1, at, without_largest)


def log_matrix(credit: Credit) -> Tensor:
    """ln C[u, s], (T, T): -inf above the diagonal and where nothing depends, NaN where it was not measured.

    Outputs without a loss have no credit, unless losses were sampled: then every output that was not followed is NaN.
    """
    by_lag = credit.by_lag
    T, lags = by_lag.shape
    steps = torch.arange(T, device=by_lag.device)
    if credit.weights is None:
        without_loss = torch.ones(T, dtype=torch.bool, device=steps.device)
        without_loss[credit.outputs] = False
        by_lag = torch.where(without_loss[:, None], -math.inf, by_lag)
    lag = steps[:, None] - steps[None, :]
    inside = (lag >= 0) & (lag < lags)
    values = by_lag.gather(1, lag.clamp(0, lags - 1))
    matrix = torch.where(inside, values, math.nan)
    return torch.where(lag < 0, -math.inf, matrix)


@torch.inference_mode(False)
@torch.no_grad()
def credit_matrix(layer_run: Runs, max_lag: int | None = None) -> Tensor:
    """Mean dependence of the loss at every output on the state at every step.

    Args:
        layer_run: A layer run, or the layer runs of a stack, lowest first.
        max_lag: Number of lags to measure, 0 .. max_lag - 1. Default: all T.

    Returns:
        C[u, s] = mean over sequences of |a^{u-s}_s|, (T, T), with rows u and columns s in processing order. It is 0
        above the diagonal and for outputs without a loss, and NaN where the lag was not measured.

    Raises:
        BadArgument: `max_lag` is less than 1.

    Example:
        >>> rnndiag.credit_matrix(layer_run).shape
        torch.Size([12, 12])
    """
    chain = chain_of(layer_run).prepared()
    lags = lag_count(chain, max_lag)
    credit = CreditAccumulator(chain, rows_of(chain), lags)
    for lag in lag_cotangents(chain, credit.rows, lags, gradients=False):
        credit.add(lag)
    return log_matrix(credit.finish(lags)).exp().to(chain.direct[0].dtype)


def lag_count(chain: Chain, max_lag: int | None) -> int:
    """D, the number of lags 0 .. D-1 to measure."""
    if max_lag is None:
        return chain.T
    require_whole("max_lag", max_lag, "Give the number of lags to measure, 1 or more.")
    return min(max_lag, chain.T)
