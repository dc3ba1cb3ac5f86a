"""All losses moved back one lag at a time, side by side: a^0_t = e_t, a^{d+1}_{t-1} = J_t^T a^d_t.

A row is one loss: it starts at its output u and stands at u - d after d moves. Rows are renormalised when they leave a
safe range, and the logarithm of what was taken out travels with them, so nothing under- or overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.row_steps import Where, earlier, take
from rnndiag.engine.truncation.sweep.scratch import Scratch
from rnndiag.engine.truncation.sweep.step_back import StepBack, step_back


@dataclass(frozen=True)
class Rows:
    """Where losses start: K rows over N columns (sequences), outputs ascending along K."""

    where: Where
    steps: Tensor
    """The output u of every row, (K,) for all columns or (K, N)."""

    def to(self, device: torch.device) -> Rows:
        """The same rows on a device."""
        where = self.where if isinstance(self.where, slice) else self.where.to(device)
        return Rows(where, self.steps.to(device))

    def first_alive(self, lag: int) -> int:
        """The first row that has a state `lag` steps before its output."""
        last = self.steps if self.steps.dim() == 1 else self.steps.amax(1)
        return int((last < lag).sum())


@dataclass(frozen=True)
class Lag:
    """All rows that are alive at one lag."""

    d: int
    first: int
    """The rows first, first + 1, ... are alive."""
    where: Where
    """Where they stand."""
    cotangent: State
    """a^d (K', N, S_p) over exp(log)."""
    norm: Tensor
    """|a^d| over exp(log), (K', N)."""
    taken: LagGradients | None
    """What was taken out of the rows; None: nothing."""
    visits: tuple[StepBack, ...] = ()

    @cached_property
    def size(self) -> Tensor | None:
        """|a^d_s| (K', N), float64; None where that does not hold all of them."""
        if self.taken is None:
            return self.norm.double()
        return None if self.taken.deep else self.norm * self.taken.scale

    @cached_property
    def log_norm(self) -> Tensor:
        """ln |a^d_s| (K', N), float64; -inf where it is exactly zero."""
        own = self.norm.double().log()
        return own if self.taken is None else own + self.taken.log

    @property
    def scale(self) -> Tensor | None:
        """exp(log), what the cotangents have to be multiplied with; None: 1."""
        return None if self.taken is None else self.taken.scale


DEEP = 500.0
"""Beyond this the exponential of a logarithm is not taken: times a norm in the safe range it might overflow."""


@dataclass(frozen=True)
class LagGradients:
    """What was taken out of rows that had left the safe range, (K', N)."""

    log: Tensor
    """Natural logarithms, float64."""
    scale: Tensor
    """Their exponentials."""
    silent: Tensor
    """The rows that are exactly zero, and stay so."""
    deep: bool
    """Whether some exponential would leave the range of float64."""

    @classmethod
    def of(cls, log: Tensor, silent: Tensor) -> LagGradients:
        """From the logarithms."""
        return cls(log, log.exp(), silent, float(log.abs().max()) > DEEP)

    def after(self, rows: int) -> LagGradients:
        """Without so many rows at the start."""
        if not rows:
            return self
        return LagGradients(self.log[rows:], self.scale[rows:], self.silent[rows:], self.deep)


def rows_of(chain: Chain) -> Rows:
    """A row for every output that has a loss; packed by sequence where each has its own few outputs."""
    hit = chain.outputs()
    steps = hit.any(1).nonzero().squeeze(1)
    if len(steps) == 0:
        return Rows(slice(0, 0), steps)
    most = int(hit.sum(0).max())
    if 2 * most <= len(steps):
        return packed_rows(chain, hit, most)
    first, last = int(steps[0]), int(steps[-1])
    if last - first + 1 == len(steps):
        return Rows(slice(first, last + 1), steps)
    return Rows(steps, steps)


def packed_rows(chain: Chain, hit: Tensor, most: int) -> Rows:
    """Rows that stand at another output in every column: the last `most` places of each column that `hit` marks."""
    T = chain.T
    order = torch.where(hit, torch.arange(T, device=hit.device)[:, None], -1)
    steps = order.sort(0).values[T - most :]
    columns = torch.arange(chain.B, device=hit.device)
    return Rows(steps.clamp(min=0) * chain.B + columns, steps)


Wanted = Callable[[Lag], bool]


@torch.no_grad()
def lag_cotangents(
    chain: Chain, rows: Rows, lags: int, gradients: Wanted | None = None
) -> Iterator[Lag]:
    """All lags 0 .. lags-1, one after the other; visits hold gradients at those that `gradients` wants (None: all).

    What a lag holds is valid until the next one is asked for.
    """
    where, taken = rows.where, None
    cotangent = tuple(take(part, where) for part in chain.direct)
    if rows.steps.dim() == 2:
        cotangent = _silence(cotangent, rows.steps >= 0)
    first = 0
    scratch = Scratch()
    for d in range(lags):
        if cotangent[0].shape[0] == 0:
            return
        cotangent, norm, taken = _renormalise(cotangent, taken)
        lag = Lag(d, first, where, cotangent, norm, taken)
        wanted = gradients is None or gradients(lag)
        visits, back = step_back(chain, where, cotangent, gradients=wanted, scratch=scratch)
        yield replace(lag, visits=visits)
        start = rows.first_alive(d + 1)
        step = start - first
        where = earlier(where, step, chain.B)
        cotangent = tuple(part[step:] for part in back)
        taken = None if taken is None else taken.after(step)
        first = start
        if rows.steps.dim() == 2:
            cotangent = _silence(cotangent, rows.steps[first:] > d)


def _silence(cotangent: State, alive: Tensor) -> State:
    return tuple(torch.where(alive[..., None], part, 0.0) for part in cotangent)


def _norm(cotangent: State) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(cotangent[0], dim=-1)
    for part in cotangent[1:]:
        norm = torch.hypot(norm, torch.linalg.vector_norm(part, dim=-1))
    return norm


def _renormalise(
    cotangent: State, taken: LagGradients | None
) -> tuple[State, Tensor, LagGradients | None]:
    """(a / factor, |a / factor|, what was taken out before with ln factor).

    Where some row has left the range in which squares are safe, all rows that are on their way there are brought back,
    so that this is seldom. Rows that are exactly zero stay as they are.
    """
    norm = _norm(cotangent)
    low, high = (float(end) for end in torch.aminmax(norm))
    least = torch.finfo(norm.dtype).tiny ** 0.25
    most = 1 / least
    if low >= least and high <= most:
        return cotangent, norm, taken
    wild = (norm < least) | (norm > most)
    if taken is not None:
        wild &= ~taken.silent
    if not bool(wild.any()):
        return cotangent, norm, taken
    size = torch.stack([part.abs().amax(-1) for part in cotangent]).amax(0)
    silent = size == 0
    far = ((norm < least**0.5) | (norm > most**0.5)) & ~silent & torch.isfinite(size)
    factor = torch.where(far, size, torch.ones_like(size))
    scaled = tuple(part / factor[..., None] for part in cotangent)
    log = factor.double().log()
    return scaled, _norm(scaled), LagGradients.of(log if taken is None else taken.log + log, silent)


def starts(rows: Rows) -> Tensor:
    """Output step of every row, (K, 1) or (K, N)."""
    steps = rows.steps
    return steps[:, None] if steps.dim() == 1 else steps
