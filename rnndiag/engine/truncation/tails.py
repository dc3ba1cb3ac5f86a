"""The tails S_d = Σ_{j>=d} c_j = g - g_d of the gradient, from a running sum: what a window of d steps leaves out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.chain import Chain, visit
from rnndiag.engine.truncation.parameters import ALL, add_gradients, right_factors
from rnndiag.engine.truncation.population import Moments, Population
from rnndiag.engine.truncation.sampling import Sampling
from rnndiag.engine.truncation.travel import Lag
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
    """Takes c_d off the full gradient lag by lag and writes down what is left."""

    def __init__(
        self, chain: Chain, population: Population, full: Tensor, sampling: Sampling, keep: bool
    ) -> None:
        """full (R, M, P): the full gradient by group of sequences, R samples of the losses."""
        self.chain, self.population, self.full = chain, population, full
        self.left = full.clone()
        self.lags = sampling.lags
        self.windows = set(sampling.windows)
        self.every_lag = len(sampling.windows) == sampling.lags
        self.tail: dict[int, Moments] = {}
        self.toward: dict[int, dict[str, float]] = {}
        self.lag_squares: dict[int, dict[str, float]] = {}
        self.kept: list[Tensor] = []
        self.keep = keep
        if keep and sampling.lags * full[0, 0].numel() * full.element_size() > KEPT_BYTES:
            raise BadArgument(
                f"Keeping {sampling.lags} lag gradients of {full.shape[-1]} parameters takes more than 1 GiB.",
                "Give a smaller max_lag, or do without lag_gradients.",
            )
        self.now = torch.zeros_like(full)
        self.full_sum = full.sum(1)
        self.rights = right_factors(chain, population.layout)
        if not self.every_lag:
            self.summed = tuple(torch.zeros_like(part) for part in chain.direct)
        self._write(0)

    def wants_visits(self, lag: int) -> bool:
        """Whether this lag's gradient is taken from the rows themselves."""
        return self.every_lag

    def add(self, lag: Lag) -> None:
        """Take in one lag."""
        flat = self.now.flatten(0, 1)
        if self.every_lag:
            flat.zero_()
            add_gradients(flat, self.rights, lag.visits, lag.scale)
        else:
            scale = lag.scale
            for whole, part in zip(self.summed, lag.cotangent, strict=True):
                add_at(
                    whole, lag.where, part if scale is None else part * scale.to(part)[..., None]
                )
            if lag.d + 1 not in self.windows:
                return
            flat.zero_()
            visits, _ = visit(self.chain, every(self.chain.T), self.summed)
            add_gradients(flat, self.rights, visits)
            for whole in self.summed:
                whole.zero_()
        self.left.sub_(self.now)
        if self.every_lag or (lag.d in self.tail):
            sums = self.now.sum(1)
            squares = self.population.minibatch(self.now, self.now, (sums, sums))
            self.lag_squares[lag.d] = squares
            if self.keep:
                self.kept.append(sums.mean(0))
        self._write(lag.d + 1)

    def _write(self, window: int) -> None:
        sums = self.left.sum(1)
        self.tail[window] = self.population.moments(self.left, sums=(sums, sums))
        both = (sums, self.full_sum)
        self.toward[window] = self.population.minibatch(self.left, self.full, both)

    def lag_gradients(self) -> dict[str, Tensor]:
        """c_d by parameter, (D, *shape); empty where they were not asked for."""
        if not self.keep:
            return {}
        missing = self.lags - len(self.kept)
        zeros = [torch.zeros_like(self.full[0, 0])] * missing
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
        inner = self._column(size, {w: m[ALL] for w, m in self.toward.items()})
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
