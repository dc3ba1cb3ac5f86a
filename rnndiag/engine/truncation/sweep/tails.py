"""Tails of the gradient, S_d = Σ_{j>=d} c_j = g - g_d: what a window of d steps leaves out."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.cpu_buffers import Scratch
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.lag_cotangents import Lag
from rnndiag.engine.truncation.sweep.parameter_layout import ALL, ParameterLayout
from rnndiag.engine.truncation.sweep.products import add_gradients, right_factors
from rnndiag.engine.truncation.sweep.sequence_statistics import group_products, mean_squares
from rnndiag.errors import BadArgument

KEPT_BYTES = 2**30
"""Memory limit in bytes of lag gradients that are kept on request."""


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
    """Its standard error, (D+1,)."""
    own: Tensor
    """|S_τ,m|² of the groups m of sequences, (D+1, M)."""
    with_total: Tensor
    """<S_τ,m, S_τ>, (D+1, M)."""


@dataclass(frozen=True)
class Tail:
    """Inner products of the tail S of one window."""

    squares: Tensor
    """|S|² by parameter and over all, (parameters + 1,)."""
    with_gradient: Tensor
    """<S, g>."""
    own: Tensor
    """|S_m|² of the groups of sequences m, (M,)."""
    with_total: Tensor
    """<S_m, S>, (M,)."""


def tail_of(layout: ParameterLayout, tail: Tensor, total: Tensor, gradient: Tensor) -> Tail:
    """Inner products of a tail (M, P) with the sum `total` (P,) over groups, and with the gradient (P,)."""
    squares = layout.inner(total, total)
    return Tail(squares, torch.dot(total, gradient).double(), *group_products(tail, total))


class TailAccumulator:
    """Subtracts c_d from the full gradient lag by lag and stores inner products of the remainder.

    Args:
        chain: The chain that is swept.
        layout: Its parameters.
        full: The full gradient by group of sequences, (M, P).
        lags: Number of lags, D.
        keep: Whether every c_d is kept.
    """

    def __init__(
        self, chain: Chain, layout: ParameterLayout, full: Tensor, lags: int, keep: bool = False
    ) -> None:
        if keep and lags * full[0].numel() * full.element_size() > KEPT_BYTES:
            raise BadArgument(
                f"Keeping {lags} lag gradients of {full.shape[-1]} parameters takes more than 1 GiB.",
                "Give a smaller max_lag, or do without lag_gradients.",
            )
        self._layout, self._lags, self._keep = layout, lags, keep
        self._kept: list[Tensor] = []
        self._left, self._now = full.clone(), torch.empty_like(full)
        self._full_sum = full.sum(0)
        self._left_sum, self._now_sum = self._full_sum.clone(), torch.empty_like(self._full_sum)
        self._rights, self._scratch = right_factors(chain, layout), Scratch()
        self._tails: dict[int, Tail] = {}
        self._lag_squares: dict[int, Tensor] = {}
        self._write(0)

    def add(self, lag: Lag) -> None:
        """Add the next lag."""
        add_gradients(
            self._now, self._rights, lag.steps_back, lag.scale, fresh=True, scratch=self._scratch
        )
        total = torch.sum(self._now, 0, out=self._now_sum)
        self._lag_squares[lag.d] = self._layout.inner(total, total)
        if self._keep:
            self._kept.append(total.clone())
        self._left.sub_(self._now)
        self._left_sum.sub_(total)
        self._write(lag.d + 1)

    def _write(self, window: int) -> None:
        self._tails[window] = tail_of(self._layout, self._left, self._left_sum, self._full_sum)

    def lag_gradients(self) -> dict[str, Tensor]:
        """c_d by parameter, (D, *shape); empty if they were not kept."""
        if not self._keep:
            return {}
        zeros = [torch.zeros_like(self._full_sum)] * (self._lags - len(self._kept))
        return self._layout.split(torch.stack([*self._kept, *zeros]))

    def finish(self, independent: bool) -> Tails:
        """The norms of all tails; lags that no loss reaches add nothing."""
        last = max(self._tails)
        for window in range(last + 1, self._lags + 1):
            self._tails[window] = self._tails[last]
            self._lag_squares[window - 1] = torch.zeros_like(self._tails[last].squares)
        return assembled(self._layout, self._tails, self._lags, independent, self._lag_squares)


def assembled(
    layout: ParameterLayout,
    tails: dict[int, Tail],
    lags: int,
    independent: bool,
    lag_squares: dict[int, Tensor] | None = None,
) -> Tails:
    """Norms by window 0 .. `lags`, from the windows in `tails` and the lags in `lag_squares`."""
    windows, size = sorted(tails), lags + 1
    squares, with_gradient, own, with_total = (
        torch.stack([getattr(tails[window], name) for window in windows]).cpu()
        for name in ("squares", "with_gradient", "own", "with_total")
    )
    names = (*layout.names, ALL)
    mean, error = mean_squares(squares[:, -1], own, with_total)
    if not independent:
        mean, error = torch.full_like(mean, math.nan), torch.full_like(mean, math.nan)
    square = squares[:, -1]
    full = square[0]
    kept = (full - 2 * with_gradient + square).clamp(min=0)
    lag_squares = lag_squares or {}
    lag_norms = squares.new_zeros(0, len(names))
    if lag_squares:
        lag_norms = torch.stack([lag_squares[d] for d in sorted(lag_squares)]).cpu().sqrt()
    norms = squares.sqrt()
    cosine = ((full - with_gradient) / (kept * full).sqrt()).clamp(-1, 1)
    if windows[0] == 0:
        cosine[0] = math.nan  # a window of no steps has no gradient
    return Tails(
        norms={name: _spread(size, windows, norms[:, k]) for k, name in enumerate(names)},
        lag_norms={
            name: _spread(lags, sorted(lag_squares), lag_norms[:, k])
            for k, name in enumerate(names)
        },
        cosine=_spread(size, windows, cosine),
        progress=_spread(size, windows, (full - with_gradient) / full),
        mean_square=_spread(size, windows, mean),
        mean_square_error=_spread(size, windows, error),
        own=_spread(size, windows, own),
        with_total=_spread(size, windows, with_total),
    )


def _spread(size: int, places: Collection[int], values: Tensor) -> Tensor:
    """values at the indices `places` of an array of `size`, NaN elsewhere."""
    at = torch.tensor(list(places), dtype=torch.int64)
    column = torch.full((size, *values.shape[1:]), math.nan, dtype=torch.float64)
    inside = at < size
    column[at[inside]] = values[inside]
    return column
