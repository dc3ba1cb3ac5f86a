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
    rows_of,
    starts,
)
from rnndiag.errors import BadArgument

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles over outputs that stand beside a profile."""


@dataclass(frozen=True)
class Credit:
    """What a ledger found, natural logarithms."""

    by_lag: Tensor
    """ln C[u, u-d] by output and lag, (T, D); NaN where no loss was followed that far."""
    by_column: Tensor
    """ln of what each sequence that was followed holds over all outputs, (D, N); (D, 0) where it was not asked for."""
    base: Tensor
    """The same of the outputs that lie so far in at lag 0, (D, N)."""
    outputs: Tensor
    """The output steps with a loss, ascending."""
    weights: Tensor | None
    """(T,): how many outputs each one stands for; None: 1."""


class CreditAccumulator:
    """ln C[u, u-d] by output u and lag d, filled lag by lag."""

    def __init__(
        self,
        chain: Chain,
        rows: Rows,
        lags: int,
        weights: Tensor | None = None,
        by_column: bool = False,
        multiplied: bool = True,
        count: Tensor | None = None,
    ) -> None:
        """weights (T,): how many outputs each one stands for, where losses were sampled, and what its loss was
        `multiplied` with.

        by_column: sequences were sampled too, so what each one holds is kept.
        count (T,): how many sequences the rows of an output stand for; None: all that the chain has there.
        """
        T, device = chain.T, chain.direct[0].device
        self.rows, self.starts = rows, starts(rows)
        self.weights, self.multiplied = weights, multiplied
        self.outputs = self.starts[self.starts >= 0].unique()
        count = chain.mask().sum(1) if count is None else count
        self.log_count = count.clamp(min=1).double().log()
        self.columns = _columns_of(chain, rows) if by_column else None
        columns = chain.B if by_column else 0
        self.by_output = torch.full((lags, T), math.nan, dtype=torch.float64, device=device)
        self.by_column = torch.full((lags, columns), -math.inf, dtype=torch.float64, device=device)
        self.base = torch.full_like(self.by_column, -math.inf)
        self.sums: list[int] = []
        """The lags that are written down as sums; all others as logarithms."""

    def add(self, lag: Lag) -> None:
        """Take in one lag."""
        steps = self.starts[lag.first :]
        packed = steps.shape[1] > 1
        if self.columns is not None:
            self._add_by_column(lag, self.columns)
        if lag.size is not None and not packed:
            # their logarithms are taken at once at the end: lag by lag they cost half as much as the step back
            self.sums.append(lag.d)
            self.by_output[lag.d].index_copy_(0, steps[:, 0], lag.size.sum(1))
            return
        logs = lag.log_norm
        if not packed:
            self.by_output[lag.d].index_copy_(0, steps[:, 0], logs.logsumexp(1))
            return
        at = self.outputs[self.outputs >= lag.d]
        logs = torch.where(steps >= lag.d, logs, -math.inf).flatten()
        found = _logsumexp_at(logs, steps.flatten().clamp(min=0), self.by_output.shape[1])
        self.by_output[lag.d, at] = found[at]

    def _add_by_column(self, lag: Lag, columns: Tensor) -> None:
        """What each sequence holds at this lag, and what its losses that lie so far in hold at lag 0."""
        if lag.d == 0:
            self.first = lag.log_norm
        alive = self.starts[lag.first :] >= lag.d
        here, sequences = columns[lag.first :].flatten(), self.by_column.shape[1]
        for table, logs in ((self.by_column, lag.log_norm), (self.base, self.first[lag.first :])):
            counted = torch.where(alive, logs, -math.inf).flatten()
            table[lag.d] = _logsumexp_at(counted, here, sequences)

    def finish(self, lags: int) -> Credit:
        """What the first `lags` lags hold."""
        by_output = self.by_output[:lags].clone()
        written = torch.zeros(len(by_output), dtype=torch.bool, device=by_output.device)
        written[self.sums] = True
        by_output[written] = by_output[written].log()
        by_output -= self.log_count
        if self.weights is not None and self.multiplied:
            by_output -= self.weights.double().log()
        followed = [] if self.columns is None else self.columns.unique()
        by_column, base = (table[:lags, followed] for table in (self.by_column, self.base))
        return Credit(by_output.T, by_column, base, self.outputs, self.weights)


def _columns_of(chain: Chain, rows: Rows) -> Tensor:
    """Which sequence every row is, (K, N)."""
    if isinstance(rows.where, Tensor) and rows.where.dim() == 2:
        return rows.where % chain.B
    sequences = torch.arange(chain.B, device=rows.steps.device)
    return sequences.expand(len(rows.steps), chain.B)


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
    reached: int = 0
    """How many lags some output lies far enough in for, 0 .. reached - 1; beyond them all is NaN."""
    left_out: tuple[tuple[Tensor, float], ...] = ()
    """ln profiles (units, D) without one output step each, or without one sequence each, and the share of all that was
    not looked at: where outputs, where sequences were sampled. For the standard error of what is made of a profile."""


def profile_of(credit: Credit, sampled_columns: float, sampled_outputs: float) -> Profile:
    """profile(d) = Σ_{u>=d} C[u, u-d] / Σ_{u>=d} C[u, u], and quantiles over the same outputs (steps from 0).

    sampled_columns, sampled_outputs: the share of sequences and of losses that was looked at.
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
    units = (
        (credit.by_column, credit.base, 1 - sampled_columns),
        (over.T, under.T, 1 - sampled_outputs),
    )
    error, left_out = torch.zeros_like(log), []
    for tops, bases, left in units:
        if left > 0:
            error += _ratio_error(tops, bases, left).square()
            left_out.append((_without_one(tops, bases), left))
    return Profile(log, quantiles, error.sqrt(), int(reached.any(0).sum()), tuple(left_out))


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
    units = (~torch.isneginf(under)).sum(1)
    factor = torch.where(units > 1, left * units / (units - 1), math.nan)
    share_over = (over - over.logsumexp(1, keepdim=True)).exp()
    share_under = (under - under.logsumexp(1, keepdim=True)).exp()
    residual = (share_over - share_under).square().sum(1)
    return (factor * residual).sqrt()


def _without_one(over: Tensor, under: Tensor) -> Tensor:
    """ln (Σ over / Σ under) without one unit each, both (D, units) as logs: (units, D)."""
    top, base = (_log_sums_without(part) for part in (over, under))
    return torch.where(torch.isneginf(base), math.nan, top - base).T


def _log_sums_without(logs: Tensor) -> Tensor:
    """ln of Σ exp over the units of (D, units) without one each. Only the largest may outweigh the others together, so
    only its difference from the sum has to be added up anew."""
    if not logs.shape[1]:
        return logs
    largest, at = logs.max(1, keepdim=True)
    safe = torch.where(torch.isfinite(largest), largest, 0.0)
    parts = (logs - safe).exp()
    rest = parts.sum(1, keepdim=True) - parts
    without_largest = logs.scatter(1, at, -math.inf).logsumexp(1, keepdim=True)
    return (safe + rest.clamp(min=0).log()).scatter(1, at, without_largest)


def log_matrix(credit: Credit) -> Tensor:
    """ln C[u, s], (T, T): -inf above the diagonal and where nothing depends, NaN where it was not measured.

    Outputs without a loss hold exactly nothing, unless losses were sampled.
    """
    by_lag = credit.by_lag
    T, lags = by_lag.shape
    steps = torch.arange(T, device=by_lag.device)
    if credit.weights is None:
        silent = torch.ones(T, dtype=torch.bool, device=steps.device)
        silent[credit.outputs] = False
        by_lag = torch.where(silent[:, None], -math.inf, by_lag)
    lag = steps[:, None] - steps[None, :]
    inside = (lag >= 0) & (lag < lags)
    values = by_lag.gather(1, lag.clamp(0, lags - 1))
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
    ledger = CreditAccumulator(chain, rows_of(chain), lags)
    for lag in lag_cotangents(chain, ledger.rows, lags, lambda _: False):
        ledger.add(lag)
    return log_matrix(ledger.finish(lags)).exp().to(chain.direct[0].dtype)


def lag_count(chain: Chain, max_lag: int | None) -> int:
    """D, how many lags are measured: 0 .. D-1."""
    if max_lag is None:
        return chain.T
    if max_lag < 1:
        raise BadArgument(
            f"max_lag is {max_lag}.", "Give the number of lags to measure, 1 or more."
        )
    return min(max_lag, chain.T)
