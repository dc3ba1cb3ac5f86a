"""The credit matrix and its profile over lag, in natural logarithms, so that nothing under- or overflows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.chain import Chain
from rnndiag.engine.truncation.stack import Runs, chain_of
from rnndiag.engine.truncation.travel import Lag, Rows, rows_of, starts, travel
from rnndiag.errors import BadArgument

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles over outputs that stand beside a profile."""


class CreditLedger:
    """ln C[u, u-d] by output u and lag d, filled lag by lag."""

    def __init__(
        self,
        chain: Chain,
        rows: Rows,
        lags: int,
        weights: Tensor | None = None,
        by_column: bool = False,
    ) -> None:
        """weights (T,): what an output's loss was multiplied with and stands for, where losses were sampled.

        by_column: sequences were sampled too, so what each one holds is kept.
        """
        T, device = chain.T, chain.direct[0].device
        self.rows, self.starts = rows, starts(rows)
        self.weights = weights
        self.log_count = chain.mask().sum(1).clamp(min=1).double().log()
        self.outputs = self.starts[self.starts >= 0].unique()
        self.by_lag = torch.full((T, lags), math.nan, dtype=torch.float64, device=device)
        columns = chain.B if by_column else 0
        self.by_column = torch.full((lags, columns), -math.inf, dtype=torch.float64, device=device)

    def stop(self, lags: int) -> None:
        """The sweep ended after so many lags."""
        self.by_lag, self.by_column = self.by_lag[:, :lags], self.by_column[:lags]

    def add(self, lag: Lag) -> None:
        """Take in one lag."""
        steps = self.starts[lag.first :]
        if self.by_column.shape[1]:
            self.by_column[lag.d] = lag.log_sum(0)
        if steps.shape[1] == 1:
            at, value = steps[:, 0], lag.log_sum(1)
        else:
            logs, at = lag.log_norm, self.outputs[self.outputs >= lag.d]
            logs = torch.where(steps >= lag.d, logs, -math.inf)
            value = _logsumexp_at(
                logs.flatten(), steps.flatten().clamp(min=0), self.by_lag.shape[0]
            )[at]
        value = value - self.log_count[at]
        if self.weights is not None:
            value = value - self.weights[at].double().log()
        self.by_lag[at, lag.d] = value


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
    """ln profile(d), (D,); NaN where no output lies that far in."""
    log_quantiles: Tensor
    """ln of the quantiles over outputs of C[u, u-d] / C[u, u], (5, D)."""
    error: Tensor
    """Relative standard error of profile(d) from sampling, (D,); 0 where nothing was sampled."""


def profile_of(ledger: CreditLedger, sampled_columns: float, sampled_outputs: float) -> Profile:
    """profile(d) = Σ_{u>=d} C[u, u-d] / Σ_{u>=d} C[u, u], and quantiles over the same outputs (steps from 0).

    sampled_columns, sampled_outputs: the share of sequences and of losses that was looked at.
    """
    outputs = ledger.outputs
    table = ledger.by_lag[outputs]
    weight = ledger.weights
    log_weight = torch.zeros_like(table[:, 0]) if weight is None else weight[outputs].double().log()
    lags = torch.arange(table.shape[1], device=table.device)
    reached = outputs[:, None] >= lags[None, :]
    base = torch.where(reached, table[:, :1], -math.inf)
    top = torch.where(reached, table, -math.inf)
    over, under = (v + log_weight[:, None] for v in (top, base))
    log = over.logsumexp(0) - under.logsumexp(0)
    log = torch.where(reached.any(0), log, math.nan)
    quantiles = _log_quantiles(table - table[:, :1], reached)
    error = torch.zeros_like(log)
    if sampled_columns < 1:
        columns = ledger.by_column
        error += _ratio_error(columns, columns[:1].expand_as(columns), 1 - sampled_columns).square()
    if sampled_outputs < 1:
        error += _ratio_error(over.T, under.T, 1 - sampled_outputs).square()
    return Profile(log, quantiles, error.sqrt())


def _log_quantiles(logs: Tensor, reached: Tensor) -> Tensor:
    """ln of linearly interpolated quantiles over the first axis of exp(logs), (5, D), of what was reached."""
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


def _ratio_error(over: Tensor, under: Tensor, left: float) -> Tensor:
    """Relative standard error of Σ over / Σ under, both (D, units) as logs, by the ratio estimator's residuals."""
    units = over.shape[1]
    if units < 2:
        return over.new_full((len(over),), math.nan)
    share_over = (over - over.logsumexp(1, keepdim=True)).exp()
    share_under = (under - under.logsumexp(1, keepdim=True)).exp()
    residual = (share_over - share_under).square().sum(1)
    return (left * units / (units - 1) * residual).sqrt()


def log_matrix(ledger: CreditLedger) -> Tensor:
    """ln C[u, s], (T, T): -inf above the diagonal and where nothing depends, NaN where it was not measured."""
    T, lags = ledger.by_lag.shape
    steps = torch.arange(T, device=ledger.by_lag.device)
    lag = steps[:, None] - steps[None, :]
    inside = (lag >= 0) & (lag < lags)
    values = ledger.by_lag.gather(1, lag.clamp(0, lags - 1))
    matrix = torch.where(inside, values, math.nan)
    return torch.where(lag < 0, -math.inf, matrix)


@torch.inference_mode(False)
@torch.no_grad()
def credit_matrix(layer_run: Runs, max_lag: int | None = None) -> Tensor:
    """C[u, s] = mean over samples of |a^{u-s}_s|: how much the loss at output u depends on the state at s.

    (T, T), rows u, columns s, in processing order; zero above the diagonal, and zero for outputs without a loss.
    `max_lag`: lags 0 .. max_lag - 1 are measured, what lies further back is NaN. Give the runs of a stack, lowest
    first, for stack semantics.
    """
    chain = chain_of(layer_run).prepared()
    lags = lag_count(chain, max_lag)
    ledger = CreditLedger(chain, rows_of(chain), lags)
    for lag in travel(chain, ledger.rows, lags, lambda _: False):
        ledger.add(lag)
    return complete(ledger).exp().to(chain.direct[0].dtype)


def complete(ledger: CreditLedger) -> Tensor:
    """ln C[u, s] of a sweep over all losses: rows of outputs without a loss are exactly zero."""
    T = ledger.by_lag.shape[0]
    steps = torch.arange(T, device=ledger.by_lag.device)
    silent = torch.ones(T, dtype=torch.bool, device=steps.device)
    silent[ledger.outputs] = False
    ledger.by_lag[silent] = -math.inf
    return log_matrix(ledger)


def lag_count(chain: Chain, max_lag: int | None) -> int:
    """D, how many lags are measured: 0 .. D-1."""
    if max_lag is None:
        return chain.T
    if max_lag < 1:
        raise BadArgument(
            f"max_lag is {max_lag}.", "Give the number of lags to measure, 1 or more."
        )
    return min(max_lag, chain.T)
