"""Every truncation window of a loop, measured on the user's own graph.

One backward pass from the loss, cut at all marks, gives the direct gradients e_t of all steps and the share of the
gradient that no state carries. Each further pass starts with what the marks kept and moves all losses back by one step:
a^{d+1}_{t-1} = J_t^T a^d_t, and c_d = Σ_t (∂s_t/∂θ)^T a^d_t is the lag gradient. Whatever lies between two states
(feedback of outputs, scaling, normalisation, hooks, partial detach) is differentiated as it is; nothing is replayed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.segments.marks import CutGraph, Gradients, Mark, RunBackward

ALL = "all"
"""Key of the results over all parameters together."""


LEAST_SHARE = 1e-2
"""Residuals are relative to a parameter's own lag gradients, or to this share of the largest parameter's."""


@dataclass(frozen=True)
class MarkedLoop:
    """The marks of one loop, and the parameters whose windows are measured."""

    name: str
    marks: tuple[Mark, ...]
    parameters: Mapping[str, Tensor]
    within: bool = False
    """Whether some marks of a step lead to others of the same step."""
    coarse: bool = False
    """Whether parts of the graph round to 16 bits (autocast)."""
    hooks: bool = False
    """Whether users' hooks may be on gradients between the marks; marks without a gradient then send zeros, so that
    they run."""
    ahead: bool = False
    """Whether the marks are before the steps: the loss of a step then reaches that step before its first mark."""

    @property
    def bound(self) -> float:
        """Relative rounding error allowed in the sum of all lags."""
        widths = {torch.finfo(mark.root.dtype).bits for mark in self.marks}
        return 3e-2 if self.coarse or 16 in widths else 1e-9 if widths == {64} else 1e-4

    @property
    def T(self) -> int:
        """Number of steps that have a mark."""
        return 1 + max(mark.time for mark in self.marks)


@dataclass(frozen=True)
class LoopMeasurement:
    """The result. Lags d = 0 .. D-1, windows τ = 0 .. D (or D+1 if the marks are before the steps)."""

    name: str
    T: int
    B: int
    parameters: tuple[str, ...]
    log_credit: Tensor
    """ln C[u, u-d] by step u of the loss and lag d, (T, D); -inf if nothing arrived, NaN for u < d."""
    direct_norm: Tensor
    """|e_t| by step and sample, (T, B)."""
    adjoint_norm: Tensor
    """|dL/ds_t| by step and sample, (T, B)."""
    tail_norms: dict[str, Tensor]
    """|g - g_τ| by parameter and for `all` together, by window."""
    lag_gradient_norms: dict[str, Tensor]
    """|c_d| by parameter and for `all` together, (D,)."""
    window_cosine: Tensor
    window_progress: Tensor
    gradient_norm: float
    """|g|, g the whole gradient of the parameters."""
    contribution_norm: dict[str, Tensor]
    """|g_t| of the batch by parameter, (T,)."""
    contribution_alignment: dict[str, Tensor]
    """cos(g_t, g), (T,)."""
    residual: dict[str, float]
    """|g - Σ_d c_d| / Σ_d |c_d| by parameter: zero, up to rounding, if the graph is differentiated correctly at
    every lag."""
    bound: float
    """Rounding error allowed in both residuals."""
    adjoint_residual: float
    """Largest |δ_t - Σ_d a^d_t| / |δ_t|; NaN if not all lags were measured."""

    @property
    def window_bias(self) -> Tensor:
        """|g - g_τ| / |g| by window."""
        return self.tail_norms[ALL] / self.gradient_norm


class _Norms:
    """Per-sample norms of the gradients that arrive at marks, in float64."""

    def __init__(self, marks: Sequence[Mark]) -> None:
        self.marks = marks
        sizes = {mark.rows(mark.root).shape[0] for mark in marks}
        self.B = sizes.pop() if len(sizes) == 1 else 1
        self.T = 1 + max(mark.time for mark in marks)
        self.device = marks[0].root.device

    def by_step(self, arrived: Mapping[int, Tensor]) -> Tensor:
        """Norm over all parts of the state, (T, B)."""
        parts: dict[tuple[int, str], Tensor] = {}
        for key, gradient in arrived.items():
            mark = self.marks[key]
            rows = mark.rows(gradient)
            at = (mark.time, mark.part)
            parts[at] = rows if at not in parts else parts[at] + rows
        square = torch.zeros(self.T, self.B, dtype=torch.float64, device=self.device)
        for (time, _), rows in parts.items():
            rows = rows if rows.shape[0] == self.B else rows.reshape(1, -1)
            wide = rows.to(torch.complex128 if rows.is_complex() else torch.float64)
            square[time] += wide.abs().square().sum(1)
        return square.sqrt()


@torch.no_grad()
def measure_loop(
    loop: MarkedLoop,
    roots: Sequence[Tensor],
    given: Sequence[Tensor | None],
    run_backward: RunBackward,
    max_lags: int | None = None,
) -> LoopMeasurement:
    """Measure the lags of one loop, at the cost of one backward pass of the loop per lag.

    Args:
        loop: The marks and parameters; `closure_of` must have found no way around the marks.
        roots: What the user differentiates, with the graph behind it whole.
        given: The gradient of each root; None: 1.
        run_backward: The entry of the autograd engine.
        max_lags: Measure lags 0 .. max_lags - 1 only. What lies beyond is moved back in one pass, so that the sum law
            holds all the same; contributions by step are then left out.
    """
    parameters = tuple(loop.parameters.values())
    cut = CutGraph(loop.marks, parameters, run_backward, zeros=loop.hooks)
    norms = _Norms(loop.marks)
    with cut.hooked():
        whole = cut.whole(roots, given)
        first = cut.from_loss(roots, given)
        windows = _Windows(loop, whole.gradients, first.gradients)
        most = loop.T if max_lags is None else min(max_lags, loop.T)
        credit, partial, remaining = _lag_by_lag(cut, loop, first.arrived, windows, norms, most)
        stopped = bool(remaining)
        if stopped:
            windows.beyond(cut.all_the_way(remaining).gradients)
        contributions = _contributions(cut, loop, {} if stopped else partial)
        adjoints = _of_parts(cut, loop, whole.arrived)
    adjoint = norms.by_step(adjoints)
    off = norms.by_step({k: v - partial[k] if k in partial else v for k, v in adjoints.items()})
    residual = math.nan if stopped else float((off / adjoint).nan_to_num(0.0).max())
    names = tuple(loop.parameters)
    norm, alignment = contributions.finish(names, whole.gradients) if not stopped else ({}, {})
    return LoopMeasurement(
        name=loop.name,
        T=loop.T,
        B=norms.B,
        parameters=names,
        log_credit=_by_output(credit),
        direct_norm=credit[0],
        adjoint_norm=adjoint,
        tail_norms=windows.tail_norms(names),
        lag_gradient_norms=windows.lag_norms(names),
        window_cosine=torch.tensor(windows.cosine, dtype=torch.float64),
        window_progress=torch.tensor(windows.progress, dtype=torch.float64),
        gradient_norm=windows.size,
        contribution_norm=norm,
        contribution_alignment=alignment,
        residual=windows.residual(names),
        bound=loop.bound,
        adjoint_residual=residual,
    )


def _lag_by_lag(
    cut: CutGraph,
    loop: MarkedLoop,
    arrived: dict[int, Tensor],
    windows: _Windows,
    norms: _Norms,
    most: int,
) -> tuple[list[Tensor], dict[int, Tensor], dict[int, Tensor]]:
    """Move all losses back by up to `most` lags, and add each lag gradient to `windows`.

    Returns:
        The norms of what arrived, (T, B), by lag; the sum of what arrived over lags, by mark; and what arrives at a
        lag beyond the last one, by mark (empty: nothing).
    """
    credit = [norms.by_step(arrived)]
    partial = dict(arrived)
    here = _not_zero(arrived)
    while here and len(credit) <= most:
        arrived, gradients = _one_step_back(cut, loop, here)
        windows.add(gradients)
        for key, value in arrived.items():
            partial[key] = partial[key] + value if key in partial else value
        here = _not_zero(arrived)
        if len(credit) == most:
            break
        if here:
            credit.append(norms.by_step(here))
    return credit, partial, here


def _not_zero(arrived: dict[int, Tensor]) -> dict[int, Tensor]:
    if not arrived:
        return {}
    largest = torch.stack([value.abs().amax().double() for value in arrived.values()]).tolist()
    # not `> 0`: gradients that are not finite must be passed on too
    return {key: v for (key, v), size in zip(arrived.items(), largest, strict=True) if size != 0}


def _one_step_back(
    cut: CutGraph, loop: MarkedLoop, here: dict[int, Tensor]
) -> tuple[dict[int, Tensor], Gradients]:
    """Move all losses one step back: returns the gradients at the earlier steps' marks, and the lag gradient.

    If marks of a step lead to others of the same step, even and odd steps are moved separately: a gradient arriving at
    a step of the other parity has crossed a step, one arriving at the same parity has not.
    """
    if not loop.within:
        found = cut.from_marks(here)
        return found.arrived, found.gradients
    arrived: dict[int, Tensor] = {}
    total: Gradients = [None] * len(loop.parameters)
    for kind in (0, 1):
        seeds = {key: v for key, v in here.items() if loop.marks[key].time % 2 == kind}
        if not seeds:
            continue
        found = cut.from_marks(_with_whole_steps(loop, seeds), pass_on=True)
        total = [_plus(a, b) for a, b in zip(total, found.gradients, strict=True)]
        arrived |= {k: v for k, v in found.arrived.items() if loop.marks[k].time % 2 != kind}
    return arrived, total


def _with_whole_steps(loop: MarkedLoop, seeds: dict[int, Tensor]) -> dict[int, Tensor]:
    """The seeds, with zeros for all other marks of the seeded steps, so that these pass on what comes from the
    others."""
    times = {loop.marks[key].time for key in seeds}
    others = {
        key: torch.zeros_like(mark.root)
        for key, mark in enumerate(loop.marks)
        if mark.time in times and key not in seeds
    }
    return {**seeds, **others}


def _of_parts(cut: CutGraph, loop: MarkedLoop, arrived: dict[int, Tensor]) -> dict[int, Tensor]:
    """δ of each part of the state alone, without paths through other parts of the same step.

    A backward pass gives w = δ + Wᵀw, where W leads from parts of a step to others of it (h = o·tanh(c)): pulled back
    through its own step alone, w gives Wᵀw. Even and odd steps are processed separately, so that nothing else arrives.
    """
    if not loop.within:
        return arrived
    found = dict(arrived)
    for kind in (0, 1):
        seeds = {key: v for key, v in arrived.items() if loop.marks[key].time % 2 == kind}
        if not seeds:
            continue
        for key, value in cut.from_marks(seeds).arrived.items():
            if loop.marks[key].time % 2 == kind:
                found[key] = found[key] - value if key in found else -value
    return found


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _by_output(credit: Sequence[Tensor]) -> Tensor:
    """(T, D): ln of the mean over samples, indexed by the step of the loss instead of that of the state."""
    T = len(credit[0])
    table = torch.full((T, len(credit)), math.nan, dtype=torch.float64, device=credit[0].device)
    for lag, norm in enumerate(credit):
        table[lag:, lag] = norm[: T - lag].mean(1).log()
    return table


class _Windows:
    """The gradient left out by each window, updated lag by lag in one gradient-sized buffer."""

    def __init__(self, loop: MarkedLoop, whole: Gradients, from_loss: Gradients) -> None:
        parameters = tuple(loop.parameters.values())
        self.gradient = [_wide(g, p) for g, p in zip(whole, parameters, strict=True)]
        self.size = _norm(self.gradient)
        self.remaining = [value.clone() for value in self.gradient]
        self.tails: list[list[float]] = []
        self.lags: list[list[float]] = []
        self.cosine: list[float] = []
        self.progress: list[float] = []
        self.sums = [0.0] * len(parameters)
        # the loss's own step lies before its first mark: it is the window of one step
        if loop.ahead:
            self._note()
        self._subtract(from_loss)
        self._note()

    def add(self, gradients: Gradients) -> None:
        """Subtract the next lag gradient."""
        self.lags.append([0.0 if g is None else float(_real(g).norm()) for g in gradients])
        self._subtract(gradients)
        self._note()

    def beyond(self, gradients: Gradients) -> None:
        """Subtract all further lags together: they define no windows, but belong to the sum."""
        self._subtract(gradients)

    def _subtract(self, gradients: Gradients) -> None:
        for k, gradient in enumerate(gradients):
            if gradient is not None:
                wide = _real(gradient)
                self.remaining[k] -= wide
                self.sums[k] += float(wide.norm())

    def _note(self) -> None:
        self.tails.append([float(remaining.norm()) for remaining in self.remaining])
        inside = [g - r for g, r in zip(self.gradient, self.remaining, strict=True)]
        inner = sum(float((g * i).sum()) for g, i in zip(self.gradient, inside, strict=True))
        both = self.size * _norm(inside)
        self.cosine.append(inner / both if both else math.nan)
        self.progress.append(inner / self.size**2 if self.size else math.nan)

    def tail_norms(self, names: Sequence[str]) -> dict[str, Tensor]:
        """|g - g_τ|; for the last window, which holds every lag, this is rounding error."""
        return _columns(self.tails, names)

    def lag_norms(self, names: Sequence[str]) -> dict[str, Tensor]:
        """|c_d| by parameter and for `all`."""
        return _columns(self.lags, names)

    def residual(self, names: Sequence[str]) -> dict[str, float]:
        """The remainder after all lags over the sum of the norms subtracted, by parameter."""
        off = [float(remaining.norm()) for remaining in self.remaining]
        # a gradient that is zero up to rounding, as of a bias before a normalisation, is compared with the others
        least = LEAST_SHARE * max(self.sums, default=0.0)
        sizes = [max(size, least) for size in self.sums]
        return {
            name: value / size if size else math.inf if value else 0.0
            for name, value, size in zip(names, off, sizes, strict=True)
        }


def _columns(rows: Sequence[Sequence[float]], names: Sequence[str]) -> dict[str, Tensor]:
    table = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(names))
    found = {name: table[:, k] for k, name in enumerate(names)}
    return {**found, ALL: table.square().sum(1).sqrt()}


def _real(value: Tensor) -> Tensor:
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    return value.double()


def _wide(value: Tensor | None, like: Tensor) -> Tensor:
    return _real(torch.zeros_like(like) if value is None else value).clone()


def _norm(values: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in values))


def _contributions(
    cut: CutGraph, loop: MarkedLoop, partial: Mapping[int, Tensor]
) -> _Contributions:
    """g_t, one step at a time: the adjoints of one step's marks, pulled back through that step alone."""
    found = _Contributions(loop.T, len(loop.parameters))
    keys: dict[int, list[int]] = {}
    for key in partial:
        keys.setdefault(loop.marks[key].time, []).append(key)
    for time, own in keys.items():
        seeds = {key: partial[key] for key in own}
        if loop.within:
            seeds = _with_whole_steps(loop, seeds)
        found.rows[time] = cut.from_marks(seeds, pass_on=loop.within).gradients
    return found


class _Contributions:
    def __init__(self, T: int, count: int) -> None:
        self.rows: list[Gradients] = [[None] * count for _ in range(T)]

    def finish(
        self, names: Sequence[str], whole: Gradients
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """|g_t| and cos(g_t, g) by parameter, (T,)."""
        norms, cosines = {}, {}
        for k, name in enumerate(names):
            gradient = whole[k]
            if gradient is None:
                continue
            full = _real(gradient)
            size = float(full.norm())
            norm, cosine = [], []
            for row in self.rows:
                found = row[k]
                wide = None if found is None else _real(found)
                length = 0.0 if wide is None else float(wide.norm())
                norm.append(length)
                inner = 0.0 if wide is None else float((wide * full).sum())
                cosine.append(inner / (length * size) if length and size else math.nan)
            norms[name] = torch.tensor(norm, dtype=torch.float64)
            cosines[name] = torch.tensor(cosine, dtype=torch.float64)
        return norms, cosines
