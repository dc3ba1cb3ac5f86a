"""The tails S_d = Σ_{j>=d} c_j = g - g_d of the gradient, from a running sum: what a window of d steps leaves out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from rnndiag.engine.truncation.chain import Chain
from rnndiag.engine.truncation.parameters import ALL
from rnndiag.engine.truncation.population import Moments, Population
from rnndiag.engine.truncation.products import add_gradients, right_factors
from rnndiag.engine.truncation.sampling import Sampling
from rnndiag.engine.truncation.travel import Lag
from rnndiag.engine.truncation.visit import visit
from rnndiag.engine.truncation.where import add_at, every
from rnndiag.errors import BadArgument

KEPT_BYTES = 2**30
"""Lag gradients are kept on request up to this size."""


@dataclass(frozen=True)
class Tails:
    """Sizes of the tails by window τ = 0 .. D; NaN where a window was not measured."""

    norms: dict[str, Tensor]
    """|S_τ| by parameter and for `all`, (D+1,)."""
    lag_norms: dict[str, Tensor]
    """|c_d| by parameter and for `all`, (D,)."""
    cosine: Tensor
    """cos(g_τ, g), (D+1,)."""
    progress: Tensor
    """<g_τ, g> / |g|², (D+1,)."""
    mean_square: Tensor
    """Unbiased |E S_τ|² over sequences, (D+1,)."""
    mean_square_error: Tensor


class TailLedger:
    """Takes c_d off the full gradient lag by lag and writes down what is left after each measured window."""

    def __init__(
        self, chain: Chain, population: Population, full: Tensor, sampling: Sampling, keep: bool
    ) -> None:
        """full (M, P): the full gradient by group of sequences."""
        self.chain, self.population = chain, population
        self.lags = sampling.lags
        self.windows = (0, *sampling.windows)
        if keep and sampling.lags * full[0].numel() * full.element_size() > KEPT_BYTES:
            raise BadArgument(
                f"Keeping {sampling.lags} lag gradients of {full.shape[-1]} parameters takes more than 1 GiB.",
                "Give a smaller max_lag, or do without lag_gradients.",
            )
        self.keep = keep
        self.kept: list[Tensor] = []
        self.left, self.now = full.clone(), torch.zeros_like(full)
        self.full_sum = full.sum(0)
        self.rights = right_factors(chain, population.layout)
        self.by_row = _rows_or_states(self.windows, sampling.outputs, chain.T)
        self.summed = tuple(torch.zeros_like(part) for part in chain.direct)
        self.tail: dict[int, Moments] = {}
        self.toward: dict[int, float] = {}
        self.lag_squares: dict[int, dict[str, float]] = {}
        self._write(0)

    def wants_visits(self, lag: int) -> bool:
        """Whether this lag's gradient is taken from the rows themselves, not from sums over lags at each state."""
        return self.by_row[lag]

    def add(self, lag: Lag) -> None:
        """Take in one lag."""
        if self.by_row[lag.d]:
            add_gradients(self.now, self.rights, lag.visits, lag.scale)
        else:
            scale = lag.scale
            for whole, part in zip(self.summed, lag.cotangent, strict=True):
                add_at(
                    whole, lag.where, part if scale is None else part * scale.to(part)[..., None]
                )
        if lag.d + 1 in self._ends:
            self._close(lag.d)

    @cached_property
    def _ends(self) -> frozenset[int]:
        return frozenset(self.windows)

    def _close(self, lag: int) -> None:
        if not self.by_row[lag]:
            visits, _ = visit(self.chain, every(self.chain.T), self.summed, carry=False)
            add_gradients(self.now, self.rights, visits)
            for whole in self.summed:
                whole.zero_()
        if lag in self.tail:
            total = self.now.sum(0)
            self.lag_squares[lag] = self.population.inner(total, total)
            if self.keep:
                self.kept.append(total)
        self.left.sub_(self.now)
        self.now.zero_()
        self._write(lag + 1)

    def stop(self, lag: Lag) -> None:
        """The sweep ends with this lag: the window that ends here is written down too."""
        self.lags = lag.d + 1
        if self.lags not in self.tail:
            self._close(lag.d)

    def _write(self, window: int) -> None:
        total = self.left.sum(0)
        self.tail[window] = self.population.square(self.left, total)
        self.toward[window] = float(torch.dot(total, self.full_sum))

    def lag_gradients(self) -> dict[str, Tensor]:
        """c_d by parameter, (D, *shape); empty where they were not asked for."""
        if not self.keep:
            return {}
        missing = self.lags - len(self.kept)
        zeros = [torch.zeros_like(self.full_sum)] * missing
        return self.population.layout.split(torch.stack([*self.kept, *zeros]))

    def finish(self, independent: bool) -> Tails:
        """The sizes of all tails. Lags beyond the last row that is alive carry nothing."""
        last = max(self.tail)
        for window in range(last + 1, self.lags + 1):
            self.tail[window], self.toward[window] = self.tail[last], self.toward[last]
            self.lag_squares[window - 1] = dict.fromkeys(self.tail[last].minibatch, 0.0)
        names = (*self.population.layout.names, ALL)
        size = self.lags + 1
        square = self._column(size, {w: m.minibatch[ALL] for w, m in self.tail.items()})
        inner = self._column(size, self.toward)
        full = square[0].clamp(min=0)
        kept = (full - 2 * inner + square).clamp(min=0)
        mean = {w: m.mean if independent else math.nan for w, m in self.tail.items()}
        error = {w: m.mean_error if independent else math.nan for w, m in self.tail.items()}
        return Tails(
            norms={
                name: self._column(size, {w: m.minibatch[name] for w, m in self.tail.items()})
                .clamp(min=0)
                .sqrt()
                for name in names
            },
            lag_norms={
                name: self._column(self.lags, {d: v[name] for d, v in self.lag_squares.items()})
                .clamp(min=0)
                .sqrt()
                for name in names
            },
            cosine=((full - inner) / (kept * full).sqrt()).clamp(-1, 1),
            progress=(full - inner) / full,
            mean_square=self._column(size, mean),
            mean_square_error=self._column(size, error),
        )

    def _column(self, size: int, values: dict[int, float]) -> Tensor:
        column = torch.full((size,), math.nan, dtype=torch.float64)
        for at, value in values.items():
            if at < size:
                column[at] = value
        return column


def _rows_or_states(windows: tuple[int, ...], outputs: int, T: int) -> list[bool]:
    """By lag: whether its gradient is cheaper from the rows (outputs a lag) than once a window from all T states."""
    found: list[bool] = []
    for before, window in pairwise(windows):
        lags = range(before, window)
        rows = sum(max(1, min(outputs, T - d)) for d in lags)
        found += [len(lags) == 1 or rows <= T] * len(lags)
    return found
