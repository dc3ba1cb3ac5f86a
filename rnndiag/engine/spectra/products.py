"""Products of Jacobians, Φ(t, k) = J_t ... J_{k+1}: norms and singular values over lag, as logarithms.

A product of many matrices is kept as Q diag(e^l) U, so that nothing over- or underflows and small singular values are
not
lost: Q is orthogonal, l holds the logarithms of the scales and U has unit rows. Each factor is taken up by one QR of
columns sorted by size, which keeps U well conditioned and all the grading in l. The singular values are exact for
factors perturbed by rounding; a direction that is crushed by 1e16 and brought back by later factors is beyond float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra.jacobians import (
    Tangents,
    require_finite,
    steps_at_once,
    stretches,
    tangents,
)
from rnndiag.engine.spectra.summary import four_numbers
from rnndiag.errors import BadArgument

HALF_SWEEPS = 3
"""Number of QRs of the transpose: each shrinks the coupling of scales e^g apart by e^-g, and it enters squared."""

WIDTH, MARGIN = 8.0, 5.0
"""Singular values are computed per range e^8 of scales with a margin e^5 on either side: rounding below e^13 eps."""

NOISE = 1e-10
"""Rows of a factor below this are rounding noise and are dropped if exact zeros in the factors bound the rank."""


class GradedProduct:
    """Products of N matrices S x S, float64. `multiply` takes one more factor from the left."""

    def __init__(self, count: int, size: int, device: torch.device) -> None:
        eye = torch.eye(size, dtype=torch.float64, device=device)
        self.basis = eye.repeat(count, 1, 1)
        """Q^T (N, S, S): tangent vectors in rows."""
        self.scale = torch.zeros(count, size, dtype=torch.float64, device=device)
        """l (N, S)"""
        self.rows = eye.repeat(count, 1, 1)
        """U (N, S, S)"""
        self.rank = torch.full((count,), size, device=device)

    def keep(self, count: int) -> None:
        """Keep the first `count` products only."""
        self.basis, self.scale = self.basis[:count], self.scale[:count]
        self.rows, self.rank = self.rows[:count], self.rank[:count]

    def multiply(self, pushed: Tensor, rank: Tensor) -> None:
        """Multiply from the left by J. `pushed` (N, S, S): J applied to every row of `basis`; `rank` (N,): bound of
        J's rank."""
        norm = pushed.norm(dim=-1, keepdim=True)
        scale, order = (self.scale + norm.squeeze(-1).log()).sort(-1, descending=True)
        # Unit columns, largest scale first, keep the QR well conditioned.
        columns = (pushed / norm.clamp(min=torch.finfo(norm.dtype).tiny)).take_along_dim(
            order.unsqueeze(-1), -2
        )
        basis, upper = torch.linalg.qr(columns.mT)
        rows = self.rows.take_along_dim(order.unsqueeze(-1), -2)
        self.basis = basis.mT
        self.scale, self.rows, size = _unit_rows(scale, _graded(upper, scale) @ rows)
        self.rank = torch.minimum(self.rank, rank)
        self._drop_noise(size)

    def _drop_noise(self, size: Tensor) -> None:
        """Set the smallest rows to zero if exact zeros in the factors bound the rank and these rows are rounding
        noise."""
        excess = size.shape[-1] - self.rank
        place = size.argsort(-1).argsort(-1)
        noise = (place < excess.unsqueeze(-1)) & (size < NOISE)
        self.scale = self.scale.masked_fill(noise, -torch.inf)
        self.rows = self.rows.masked_fill(noise.unsqueeze(-1), 0.0)

    def log_singular_values(self) -> Tensor:
        """(N, S), descending; -inf where the product is singular."""
        scale, rows = _sorted(self.scale, self.rows)
        for _ in range(HALF_SWEEPS):
            upper = torch.linalg.qr(rows.mT, mode="r").R
            scale, rows, _ = _unit_rows(scale, _graded(upper, scale))
            scale, rows = _sorted(scale, rows)
        return _by_windows(scale, rows)


def _graded(upper: Tensor, scale: Tensor) -> Tensor:
    """R diag(e^l) = diag(e^l) N with N_ij = R_ij e^(l_j - l_i); l descends, so that no entry grows. Returns N."""
    # The clamped entries lie below the diagonal of R, where it is zero.
    ratio = (scale.unsqueeze(-2) - scale.unsqueeze(-1)).clamp(max=0.0).exp()
    return torch.where(scale.isfinite().unsqueeze(-1), upper * ratio.nan_to_num(0.0), 0.0)


def _unit_rows(scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = rows.norm(dim=-1)
    unit = rows / size.clamp(min=torch.finfo(size.dtype).tiny).unsqueeze(-1)
    return scale + size.log(), unit, size


def _sorted(scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    scale, order = scale.sort(-1, descending=True)
    return scale, rows.take_along_dim(order.unsqueeze(-1), -2)


def _by_windows(scale: Tensor, rows: Tensor) -> Tensor:
    """Singular values of diag(e^l) U, nearly decoupled, by ordinary SVDs of overlapping ranges of scales."""
    top = scale[:, :1]
    depth = (top - scale).masked_fill(~scale.isfinite(), torch.inf)
    result = scale.clone()
    finite = depth[depth.isfinite()]
    for number in finite.div(WIDTH).floor().unique().tolist():
        edge = number * WIDTH
        low, high = edge - MARGIN, edge + WIDTH + MARGIN
        inside = (depth >= low) & (depth < high)
        wanted = ((depth >= edge) & (depth < edge + WIDTH)).any(-1)
        chosen = wanted.nonzero().squeeze(-1)
        span = int(inside[chosen].sum(-1).max())
        first = (depth[chosen] < low).sum(-1).clamp(max=scale.shape[-1] - span)
        place = first.unsqueeze(-1) + torch.arange(span, device=scale.device)
        near = depth[chosen].take_along_dim(place, -1)
        block = rows[chosen].take_along_dim(place.unsqueeze(-1), -2)
        block = block.take_along_dim(place.unsqueeze(-2), -1)
        block = block * (edge - near.clamp(low, high)).exp().unsqueeze(-1)
        values = torch.linalg.svdvals(block).log() + top[chosen] - edge
        mine = (near >= edge) & (near < edge + WIDTH)
        old = result[chosen].take_along_dim(place, -1)
        result[chosen] = result[chosen].scatter(-1, place, torch.where(mine, values, old))
    return result.sort(-1, descending=True).values


@torch.no_grad()
def textbook_bound(run: LayerRun, lags: Sequence[int], anchors: Sequence[int]) -> Tensor | None:
    """ln Π_{j=k+1..k+d} σ(D_j) σ(W_hh) for lags d, anchors k and sequences: (D, A, B) float64; NaN past T.

    None where the cell is not of the form h = φ(a). σ(D_j) is the largest |φ'| over units: -inf where all are at rest.
    """
    if run.cell.derivative is None:
        return None
    slope = torch.cat([_largest_slope(held) for _, held in stretches(run, torch.float64)]).log()
    weight = torch.linalg.matrix_norm(run.weights["weight_hh"].double(), 2).log()
    per_step = slope + weight
    columns = []
    for lag in lags:
        rows = [
            per_step[k : k + lag].sum(0)
            if k + lag <= run.T
            else torch.full_like(per_step[0], torch.nan)
            for k in anchors
        ]
        columns.append(torch.stack(rows))
    return torch.stack(columns)


def _largest_slope(held: Tangents) -> Tensor:
    """σ(D_j) (T', B), from the same derivatives as the products that it bounds: recorded h near ±1 have too few
    digits."""
    assert held.diagonal is not None
    by_gate = held.diagonal.a_hh[0]
    assert by_gate is not None
    return by_gate.abs().amax((-2, -1))


CHUNK_BYTES = 256 * 2**20
"""Approximate memory limit of the products in bytes: some sequences and anchors at a time."""

ANCHORS = 8
"""Default number of start states, evenly spaced."""


@dataclass(frozen=True)
class JacobianProducts:
    """Singular values of Φ(k + d, k) for lags d (D), anchors k (A), sequences b (B); NaN where k + d is past the end.

    The anchor k is the state s_k that is differentiated by: k = 0 is s_0, and Φ(k, k) = 1.
    """

    layer: str
    lags: tuple[int, ...]
    anchors: tuple[int, ...]
    log_singular_values: Tensor
    """(D, A, B, S) float64, natural logarithms, descending; -inf for an exact zero."""
    log_bound: Tensor | None
    """(D, A, B): ln Π σ(D_j) σ(W_hh), for cells h = φ(a) only; None for others."""

    @property
    def log_spectral(self) -> Tensor:
        """ln |Φ|_2, (D, A, B)."""
        return self.log_singular_values[..., 0]

    @property
    def log_smallest(self) -> Tensor:
        """ln of the smallest singular value, (D, A, B)."""
        return self.log_singular_values[..., -1]

    @property
    def log_frobenius(self) -> Tensor:
        """ln |Φ|_F, (D, A, B)."""
        return torch.logsumexp(2 * self.log_singular_values, -1) / 2

    @property
    def log_median(self) -> Tensor:
        """Median ln singular value, (D, A, B); the mean of the two middle ones where S is even."""
        size = self.log_singular_values.shape[-1]
        return self.log_singular_values[..., (size - 1) // 2 : size // 2 + 1].mean(-1)

    @property
    def log_looseness(self) -> Tensor | None:
        """ln (bound / measured spectral norm), (D, A, B): how loose the textbook's bound is."""
        return None if self.log_bound is None else self.log_bound - self.log_spectral

    @property
    def finite_time_exponents(self) -> Tensor:
        """ln σ_i(Φ) / d, mean over anchors and sequences, (D, S): growth per step over windows of d steps."""
        steps = self.log_singular_values.new_tensor(self.lags)
        exponents = self.log_singular_values / steps[:, None, None, None]
        return four_numbers(exponents.flatten(1, 2).mT)[..., 0]

    def rows(self) -> dict[str, Tensor]:
        """The stored quantities by name: `product_*` (lag, stat) over anchors and sequences, and the exponents."""
        values = {
            "product_frobenius": self.log_frobenius,
            "product_spectral": self.log_spectral,
            "product_smallest": self.log_smallest,
            "product_median": self.log_median,
        }
        if self.log_bound is not None:
            values["product_bound"] = self.log_bound
        rows = {name: four_numbers(value.flatten(1)) for name, value in values.items()}
        return {**rows, "finite_time_exponents": self.finite_time_exponents}

    def coordinates(self) -> dict[str, tuple[str, ...]]:
        """Labels of the dims of `rows`."""
        size = self.log_singular_values.shape[-1]
        return {"lag": tuple(map(str, self.lags)), "exponent": tuple(map(str, range(1, size + 1)))}


@torch.no_grad()
def jacobian_products(
    run: LayerRun, lags: int | Sequence[int], anchors: int | Sequence[int] | None = None
) -> JacobianProducts:
    """Singular values of the products of d Jacobians, Φ(k + d, k) = J_{k+d} ... J_{k+1}.

    Float64 inside; one QR of an S x S matrix a step, anchor and sequence; no product is formed. Memory: about 256 MiB
    beside the result.

    Args:
        run: A layer run.
        lags: d, 1 .. T, one or several.
        anchors: Numbers k of the start states, 0 (s_0) .. T-1. Default: up to 8, evenly spaced.

    Returns:
        ln of the singular values by lag, anchor and sequence, and the textbook's bound where the cell has one.

    Raises:
        BadArgument: A lag or an anchor does not fit the run.
        NotExact: A state or a weight is not finite.

    Example:
        >>> found = rnndiag.jacobian_products(layer_run, [1, 4], anchors=[0])
        >>> found.log_singular_values.shape
        torch.Size([2, 1, 4, 10])
    """
    lags = _lags(run, _several("lags", lags))
    anchors = _anchors(run, lags, None if anchors is None else _several("anchors", anchors))
    require_finite(run)
    out = torch.full(
        (len(lags), len(anchors), run.B, run.S), torch.nan, dtype=torch.float64, device=run.device
    )
    room = max(1, CHUNK_BYTES // (10 * 8 * run.S**2))
    at_once = min(run.B, room)
    for first in range(0, run.B, at_once):
        part = run.select(range(first, min(first + at_once, run.B)))
        some = max(1, room // part.B)
        for begin in range(0, len(anchors), some):
            chosen = anchors[begin : begin + some]
            target = out[:, begin : begin + some, first : first + at_once]
            _grow(part, lags, chosen, target)
    exists = _exists(run, lags, anchors)
    out.masked_fill_(~exists.unsqueeze(-1), torch.nan)
    bound = textbook_bound(run, lags, anchors)
    if bound is not None:
        bound = bound.masked_fill(~exists, torch.nan)
    return JacobianProducts(run.name, tuple(lags), tuple(anchors), out, bound)


def singular_spectrum(run: LayerRun, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """ln of all singular values of Φ(t, k) for chosen pairs.

    Args:
        run: A layer run.
        pairs: (t, k) with 0 <= k < t <= T, numbers of states.

    Returns:
        (pairs, B, S), descending.

    Raises:
        BadArgument: A pair does not fit the run.

    Example:
        >>> rnndiag.singular_spectrum(layer_run, [(5, 2), (12, 0)]).shape
        torch.Size([2, 4, 10])
    """
    wrong = [pair for pair in pairs if not 0 <= pair[1] < pair[0] <= run.T]
    if wrong or not pairs:
        raise BadArgument(
            f"The pairs (t, k) = {wrong} do not fit a run of {run.T} steps.",
            "Give pairs of state numbers with 0 <= k < t <= T.",
        )
    rows: dict[tuple[int, int], Tensor] = {}
    for start in sorted({k for _, k in pairs}):
        ends = [t for t, k in pairs if k == start]
        products = jacobian_products(run, [t - start for t in ends], [start])
        for lag, values in zip(products.lags, products.log_singular_values, strict=True):
            rows[start + lag, start] = values[0]
    return torch.stack([rows[pair] for pair in pairs])


def _grow(run: LayerRun, lags: list[int], anchors: list[int], out: Tensor) -> None:
    """Fill `out` (D, A, B, S): all products grow by one factor from the left at a time; those past T drop out."""
    starts = torch.tensor(anchors, device=run.device)
    count, size = len(anchors), run.S
    product = GradedProduct(count * run.B, size, run.device)
    held = _Held(run)
    for lag in range(1, lags[-1] + 1):
        alive = sum(start + lag <= run.T for start in anchors)
        if alive == 0:
            return
        if alive < count:
            product.keep(alive * run.B)
            count = alive
        vectors = product.basis.unflatten(0, (count, run.B))
        pushed, rank = held.push(starts[:count] + lag - 1, vectors)
        product.multiply(pushed.flatten(0, 1), rank.flatten())
        if lag in lags:
            values = product.log_singular_values().unflatten(0, (count, run.B))
            out[lags.index(lag), :count] = values


class _Held:
    """The tangents of whole runs if they fit in memory; else computed for each step on demand."""

    def __init__(self, run: LayerRun) -> None:
        self.run = run
        fits = steps_at_once(run, torch.float64) >= run.T
        self.all = self._make(0, run.T) if fits else None

    def _make(self, start: int, stop: int) -> tuple[Tangents, Tensor]:
        made = tangents(self.run, start, stop, torch.float64)
        return made, made.rank()

    def push(self, times: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """J_t applied to vectors (A, B, k, S) at times (A,), and the upper bound (A, B) of its rank."""
        if self.all is not None:
            made, rank = self.all
            return made.push(times, vectors), rank[times]
        pushed, ranks = [], []
        for t, rows in zip(times.tolist(), vectors, strict=True):
            made, rank = self._make(t, t + 1)
            pushed.append(made.push(0, rows))
            ranks.append(rank[0])
        return torch.stack(pushed), torch.stack(ranks)


def _exists(run: LayerRun, lags: Sequence[int], anchors: Sequence[int]) -> Tensor:
    """(D, A, B) bool: whether the state k + d is within the sequence."""
    ends = torch.tensor(lags)[:, None] + torch.tensor(anchors)
    lengths = torch.full((run.B,), run.T) if run.lengths is None else run.lengths.cpu()
    return (ends.unsqueeze(-1) <= lengths).to(run.device)


def _several(what: str, numbers: int | Sequence[int]) -> list[int]:
    """One or more whole numbers of Python, numpy or torch as a list."""
    several = isinstance(numbers, Iterable) and getattr(numbers, "ndim", 1) > 0
    given: list[Any] = list(numbers) if several else [numbers]  # type: ignore[arg-type]
    try:
        found = [index(number) for number in given]
    except TypeError:
        found = []
    kinds = {str(getattr(number, "dtype", type(number).__name__)) for number in given}
    if len(found) < len(given) or kinds & {"bool", "torch.bool"} or isinstance(numbers, bytes):
        raise BadArgument(f"{what} is {numbers!r}.", "Give a whole number, or several of them.")
    return found


def _lags(run: LayerRun, lags: list[int]) -> list[int]:
    wanted = sorted(set(lags))
    if not wanted or wanted[0] < 1 or wanted[-1] > run.T:
        raise BadArgument(
            f"The lags {lags} do not fit a run of {run.T} steps.",
            f"Give one or more lags from 1 to {run.T}.",
        )
    return wanted


def _anchors(run: LayerRun, lags: list[int], anchors: list[int] | None) -> list[int]:
    last = run.T - lags[0]
    if anchors is None:
        count = min(ANCHORS, last + 1)
        return [round(i * last / max(1, count - 1)) for i in range(count)]
    wanted = sorted(set(anchors))
    if not wanted or wanted[0] < 0 or wanted[-1] > last:
        raise BadArgument(
            f"The anchors {anchors} leave no room for a product of {lags[0]} steps in {run.T}.",
            f"Give numbers of start states from 0 (the initial state) to {last}.",
        )
    return wanted
