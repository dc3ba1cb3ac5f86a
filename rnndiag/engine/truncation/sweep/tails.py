"""The tails S_d = Σ_{j>=d} c_j = g - g_d of the gradient, from a running sum: what a window of d steps leaves out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.lag_cotangents import Lag
from rnndiag.engine.truncation.sweep.negligible import NormBounds
from rnndiag.engine.truncation.sweep.parameter_layout import ALL
from rnndiag.engine.truncation.sweep.products import add_gradients, right_factors
from rnndiag.engine.truncation.sweep.row_steps import add_at, every
from rnndiag.engine.truncation.sweep.sampling import Sampling
from rnndiag.engine.truncation.sweep.scratch import Scratch
from rnndiag.engine.truncation.sweep.sequence_statistics import SequenceStatistics, shares
from rnndiag.engine.truncation.sweep.step_back import step_back
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
    own: Tensor
    """|S_τ,m|² of the groups m of sequences, (D+1, M)."""
    reach: Tensor
    """<S_τ,m, S_τ>, (D+1, M)."""
    faint: tuple[int, ...] = ()
    """The lags whose |c_d| are upper bounds: together they lie below one rounding of |g|, and no tail can show them."""


@dataclass(frozen=True)
class Tail:
    """What one window leaves out."""

    squares: Tensor
    """|S_τ|² by parameter and over all, (parameters + 1,)."""
    toward: Tensor
    """<S_τ, g>"""
    own: Tensor
    """|S_τ,m|² of the groups of sequences, (M,)."""
    reach: Tensor
    """<S_τ,m, S_τ>, (M,)."""


class TailAccumulator:
    """Takes c_d off the full gradient lag by lag and writes down what is left after each measured window."""

    def __init__(
        self,
        chain: Chain,
        population: SequenceStatistics,
        full: Tensor,
        sampling: Sampling,
        keep: bool,
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
        self.left, self.now = full.clone(), torch.empty_like(full)
        self.full_sum = full.sum(0)
        self.left_sum, self.now_sum = self.full_sum.clone(), torch.empty_like(self.full_sum)
        self.fresh = True
        self.rights, self.scratch = right_factors(chain, population.layout), Scratch()
        self.by_row = _rows_or_states(self.windows, sampling.outputs, chain.T)
        self.summed = tuple(torch.zeros_like(part) for part in chain.direct if not all(self.by_row))
        self.tail: dict[int, Tail] = {}
        self.lag_squares: dict[int, Tensor] = {}
        self.bounds = None if keep else NormBounds.of(chain, self.rights, self.full_sum, self.lags)
        self.faint: set[int] = set()
        self._write(0)

    def wants_visits(self, lag: Lag) -> bool:
        """Whether this lag's gradient is taken from the rows themselves, not from sums over lags at each state."""
        return self.by_row[lag.d] and not self._is_faint(lag)

    def add(self, lag: Lag) -> None:
        """Take in one lag."""
        if lag.d in self.faint:
            return
        scale = lag.scale
        if self.by_row[lag.d]:
            fresh, self.fresh = self.fresh, False
            add_gradients(
                self.now, self.rights, lag.visits, scale, fresh=fresh, scratch=self.scratch
            )
        else:
            for whole, part in zip(self.summed, lag.cotangent, strict=True):
                add_at(
                    whole, lag.where, part if scale is None else part * scale.to(part)[..., None]
                )
        if lag.d + 1 in self._ends:
            self._close(lag.d)

    def _is_faint(self, lag: Lag) -> bool:
        """Whether c_d, a measured window by itself, is too small to change what is left: then it is bounded only."""
        if self.bounds is None or lag.d + 1 not in self._ends or lag.d not in self.tail:
            return False
        bound = self.bounds.faint(lag, self.lag_squares.get(lag.d - 1))
        if bound is None:
            return False
        self.faint.add(lag.d)
        self.lag_squares[lag.d] = bound.square()
        self.tail[lag.d + 1] = self.tail[lag.d]
        return True

    @cached_property
    def _ends(self) -> frozenset[int]:
        return frozenset(self.windows)

    def _close(self, lag: int) -> None:
        if not self.by_row[lag]:
            visits, _ = step_back(self.chain, every(self.chain.T), self.summed, carry=False)
            add_gradients(self.now, self.rights, visits, fresh=True)
            for whole in self.summed:
                whole.zero_()
        total = torch.sum(self.now, 0, out=self.now_sum)
        if lag in self.tail:
            self.lag_squares[lag] = self.population.layout.inner(total, total)
            if self.keep:
                self.kept.append(total.clone())
        self.left.sub_(self.now)
        self.left_sum.sub_(total)
        self.fresh = True
        self._write(lag + 1)

    def stop(self, lag: Lag) -> None:
        """The sweep ends with this lag: the window that ends here is written down too."""
        self.lags = lag.d + 1
        if self.lags not in self.tail:
            self._close(lag.d)

    def _write(self, window: int) -> None:
        self.tail[window] = tail_of(self.population, self.left, self.left_sum, self.full_sum)

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
            self.tail[window] = self.tail[last]
            self.lag_squares[window - 1] = torch.zeros_like(self.tail[last].squares)
        return assembled(
            self.population, self.tail, self.lag_squares, self.lags, independent, self.faint
        )


def tail_of(population: SequenceStatistics, tail: Tensor, total: Tensor, whole: Tensor) -> Tail:
    """What is kept of a tail (M, P) with the sum `total` (P,) over groups; whole (P,): the gradient."""
    squares = population.layout.inner(total, total)
    return Tail(squares, torch.dot(total, whole).double(), *shares(tail, total))


def assembled(
    population: SequenceStatistics,
    tail: dict[int, Tail],
    lag_squares: dict[int, Tensor],
    lags: int,
    independent: bool,
    faint: set[int] | frozenset[int] = frozenset(),
) -> Tails:
    """The tails by window, 0 .. `lags`, from those that were measured."""
    windows = sorted(tail)
    at, size = torch.tensor(windows), lags + 1
    tails = [tail[window] for window in windows]
    squares, toward, own, reach = (
        torch.stack([getattr(tail, name) for tail in tails]).cpu()
        for name in ("squares", "toward", "own", "reach")
    )
    names = (*population.layout.names, ALL)
    mean, error = population.of_means(squares[:, -1], own, reach)
    if not independent:
        mean, error = torch.full_like(mean, math.nan), torch.full_like(mean, math.nan)
    square = squares[:, -1]
    full = square[0]
    kept = (full - 2 * toward + square).clamp(min=0)
    known = torch.tensor(sorted(lag_squares), dtype=torch.int64)
    lag_norms = squares.new_zeros(0, len(names))
    if len(known):
        lag_norms = torch.stack([lag_squares[d] for d in known.tolist()]).cpu().sqrt()
    norms = squares.sqrt()
    cosine = ((full - toward) / (kept * full).sqrt()).clamp(-1, 1)
    cosine[at == 0] = math.nan  # of nothing at all, up to rounding
    return Tails(
        norms={name: _spread(size, at, norms[:, k]) for k, name in enumerate(names)},
        lag_norms={name: _spread(lags, known, lag_norms[:, k]) for k, name in enumerate(names)},
        cosine=_spread(size, at, cosine),
        progress=_spread(size, at, (full - toward) / full),
        mean_square=_spread(size, at, mean),
        mean_square_error=_spread(size, at, error),
        own=_spread(size, at, own),
        reach=_spread(size, at, reach),
        faint=tuple(sorted(faint)),
    )


def _spread(size: int, at: Tensor, values: Tensor) -> Tensor:
    """values at their places among `size`, NaN elsewhere."""
    column = torch.full((size, *values.shape[1:]), math.nan, dtype=torch.float64)
    inside = at < size
    column[at[inside]] = values[inside]
    return column


def _rows_or_states(windows: tuple[int, ...], outputs: int, T: int) -> list[bool]:
    """By lag: whether its gradient is cheaper from the rows (outputs a lag) than once a window from all T states."""
    found: list[bool] = []
    for before, window in pairwise(windows):
        lags = range(before, window)
        rows = sum(max(1, min(outputs, T - d)) for d in lags)
        found += [len(lags) == 1 or rows <= T] * len(lags)
    return found
