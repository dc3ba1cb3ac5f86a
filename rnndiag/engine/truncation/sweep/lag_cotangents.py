"""Cotangents of all losses, moved back through time one lag at a time: a^0_t = e_t, a^{d+1}_{t-1} = J_t^T a^d_t.

A row is one loss: it starts at its output step u and is at step u - d after d moves. Rows are rescaled when they leave
the range in which squares are safe, and the logarithm of the scale is kept beside them, so nothing under- or overflows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.cpu_buffers import Scratch
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.row_steps import Where, earlier, take
from rnndiag.engine.truncation.sweep.step_back import StepBack, step_back


@dataclass(frozen=True)
class Rows:
    """Output steps of the losses: K rows over N columns (sequences), outputs ascending along K."""

    where: Where
    steps: Tensor
    """Output step u of every row, (K,) for all columns or (K, N); -1 if a column has fewer losses."""

    def first_alive(self, lag: int) -> int:
        """Index of the first row that has a state `lag` steps before its output."""
        last = self.steps if self.steps.dim() == 1 else self.steps.amax(1)
        return int((last < lag).sum())


@dataclass(frozen=True)
class Lag:
    """All rows that have a state at one lag."""

    d: int
    first: int
    """The rows first, first + 1, ... have a state at this lag: K' = K - first rows."""
    where: Where
    """The time steps that the rows are at."""
    cotangent: State
    """a^d / scale, (K', N, S_p) a part of the state."""
    norm: Tensor
    """|a^d| / scale, (K', N)."""
    row_scales: RowScales | None
    """The factors that the rows were divided by; None: 1."""
    steps_back: tuple[StepBack, ...] = ()
    """Factors of the parameter gradients, by layer; without gradients if they were not requested."""

    @cached_property
    def size(self) -> Tensor | None:
        """|a^d_s| (K', N), float64; None if some may be out of its range."""
        if self.row_scales is None:
            return self.norm.double()
        return None if self.row_scales.out_of_range else self.norm * self.row_scales.scale

    @cached_property
    def log_norm(self) -> Tensor:
        """ln |a^d_s| (K', N), float64; -inf for exact zeros."""
        own = self.norm.double().log()
        return own if self.row_scales is None else own + self.row_scales.log

    @property
    def scale(self) -> Tensor | None:
        """(K', N), the factor from `cotangent` to a^d; None: 1."""
        return None if self.row_scales is None else self.row_scales.scale


LARGEST_LOG = 500.0
"""Larger logarithms are not exponentiated: the result times a norm in the safe range might overflow float64."""


@dataclass(frozen=True)
class RowScales:
    """The factors that rows were divided by after leaving the safe range, (K', N)."""

    log: Tensor
    """Natural logarithms, float64."""
    scale: Tensor
    """Their exponentials."""
    is_zero: Tensor
    """Rows that are exactly zero, and stay so."""
    out_of_range: bool
    """True if some exponential would leave the range of float64."""

    @classmethod
    def of(cls, log: Tensor, is_zero: Tensor) -> RowScales:
        """The scales with these logarithms."""
        return cls(log, log.exp(), is_zero, float(log.abs().max()) > LARGEST_LOG)

    def after(self, rows: int) -> RowScales:
        """The same rows without the first `rows`."""
        if not rows:
            return self
        return RowScales(self.log[rows:], self.scale[rows:], self.is_zero[rows:], self.out_of_range)


def rows_of(chain: Chain) -> Rows:
    """One row for every output step with a loss; if sequences have few losses at different steps, one per such loss."""
    hit = chain.outputs()
    steps = hit.any(1).nonzero().squeeze(1)
    if len(steps) == 0:
        return Rows(slice(0, 0), steps)
    most = int(hit.sum(0).max())
    # Rows of few losses would be mostly zeros if each output step had a row of its own.
    if 2 * most <= len(steps):
        return packed_rows(chain, hit, most)
    first, last = int(steps[0]), int(steps[-1])
    # A slice makes views of the states; an index tensor copies them.
    if last - first + 1 == len(steps):
        return Rows(slice(first, last + 1), steps)
    return Rows(steps, steps)


def packed_rows(chain: Chain, hit: Tensor, most: int) -> Rows:
    """Rows with another output step in every column: the last `most` steps of each column that `hit` marks."""
    T = chain.T
    order = torch.where(hit, torch.arange(T, device=hit.device)[:, None], -1)
    steps = order.sort(0).values[T - most :]
    columns = torch.arange(chain.B, device=hit.device)
    return Rows(steps.clamp(min=0) * chain.B + columns, steps)


@torch.no_grad()
def lag_cotangents(chain: Chain, rows: Rows, lags: int, *, gradients: bool = True) -> Iterator[Lag]:
    """Yield the lags 0 .. lags-1 in order. Tensors of a lag are overwritten when the next one is taken.

    Args:
        chain: The chain, prepared.
        rows: The losses to follow.
        lags: Number of lags at most; it ends earlier where no row has a state left.
        gradients: Whether `steps_back` is to hold what parameter gradients need.
    """
    where, scales = rows.where, None
    cotangent = tuple(take(part, where) for part in chain.direct)
    if rows.steps.dim() == 2:
        cotangent = _zero_except(cotangent, rows.steps >= 0)
    first = 0
    scratch = Scratch()
    for d in range(lags):
        if cotangent[0].shape[0] == 0:
            return
        cotangent, norm, scales = _renormalise(cotangent, scales)
        steps_back, back = step_back(chain, where, cotangent, gradients=gradients, scratch=scratch)
        yield Lag(d, first, where, cotangent, norm, scales, steps_back)
        start = rows.first_alive(d + 1)
        step = start - first
        where = earlier(where, step, chain.B)
        cotangent = tuple(part[step:] for part in back)
        scales = None if scales is None else scales.after(step)
        first = start
        if rows.steps.dim() == 2:
            cotangent = _zero_except(cotangent, rows.steps[first:] > d)


def _zero_except(cotangent: State, alive: Tensor) -> State:
    return tuple(torch.where(alive[..., None], part, 0.0) for part in cotangent)


def _norm(cotangent: State) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(cotangent[0], dim=-1)
    for part in cotangent[1:]:
        norm = torch.hypot(norm, torch.linalg.vector_norm(part, dim=-1))
    return norm


def _renormalise(
    cotangent: State, scales: RowScales | None
) -> tuple[State, Tensor, RowScales | None]:
    """(cotangents, their norms, scales), rescaled if some row has left the range in which squares are safe.

    Rows close to the limits of that range are rescaled too, so that this happens seldom. Rows of exact zeros stay
    unchanged.
    """
    norm = _norm(cotangent)
    low, high = (float(end) for end in torch.aminmax(norm))
    least = torch.finfo(norm.dtype).tiny ** 0.25
    most = 1 / least
    if low >= least and high <= most:
        return cotangent, norm, scales
    unsafe = (norm < least) | (norm > most)
    if scales is not None:
        unsafe &= ~scales.is_zero
    if not bool(unsafe.any()):
        return cotangent, norm, scales
    size = torch.stack([part.abs().amax(-1) for part in cotangent]).amax(0)
    is_zero = size == 0
    far = ((norm < least**0.5) | (norm > most**0.5)) & ~is_zero & torch.isfinite(size)
    factor = torch.where(far, size, torch.ones_like(size))
    scaled = tuple(part / factor[..., None] for part in cotangent)
    log = factor.double().log()
    log = log if scales is None else scales.log + log
    return scaled, _norm(scaled), RowScales.of(log, is_zero)


def output_steps(rows: Rows) -> Tensor:
    """Output step of every row, (K, 1) or (K, N)."""
    steps = rows.steps
    return steps[:, None] if steps.dim() == 1 else steps
