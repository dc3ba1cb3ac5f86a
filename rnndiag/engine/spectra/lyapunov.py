"""Lyapunov spectrum along the recorded trajectory: λ_i, the mean growth per step of an orthonormal frame."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra.frame import Interval, TangentFrame
from rnndiag.engine.spectra.jacobians import Tangents, jacobians, require_finite, stretch, stretches
from rnndiag.engine.spectra.products import JacobianProducts, jacobian_products
from rnndiag.errors import BadArgument


class Growth:
    """Σ ln |R_ii| by block of time and sequence, after the warm-up and within each sequence's length."""

    def __init__(self, run: LayerRun, k: int, warmup: int, blocks: int, dtype: torch.dtype) -> None:
        self.T, self.warmup = run.T, warmup
        lengths = torch.full((run.B,), run.T) if run.lengths is None else run.lengths
        self.lengths = lengths.to(run.device)
        self._padded = run.lengths is not None
        self.steps = (self.lengths - warmup).clamp(min=0)
        """(B,) number of counted steps."""
        blocks = min(blocks, run.T - warmup)
        edges = torch.linspace(warmup, run.T, blocks + 1).round().long()
        self.edges = edges.to(run.device)
        self._stops: list[int] = edges.tolist()
        self._edges = frozenset(self._stops)
        self.sums = torch.zeros(blocks, run.B, k, dtype=dtype, device=run.device)
        """(blocks, B, k) sums of ln |R_ii|."""

    def is_edge(self, t: int) -> bool:
        """Whether a block, or the warm-up, ends after t steps: intervals between QRs must end there."""
        return t in self._edges

    def quarters(self) -> frozenset[int]:
        """Steps at which a block starts, about a quarter, half and three quarters through the counted time."""
        starts = self._stops[:-1]
        return frozenset(starts[len(starts) * quarter // 4] for quarter in (1, 2, 3))

    def add(self, seen: Tensor, t: int, steps: int) -> Tensor:
        """Add the growth `seen` (B, k) over `steps` steps, the last of which is step t (1..T).

        Returns it with NaN for sequences that had ended.
        """
        counted = seen
        if self._padded:
            over = (self.lengths <= t - steps)[:, None]
            counted, seen = torch.where(over, 0.0, seen), seen.masked_fill(over, torch.nan)
        if t > self.warmup:
            self.sums[bisect_left(self._stops, t) - 1] += counted
        return seen

    def block_steps(self) -> Tensor:
        """(blocks, B): number of counted steps of each block."""
        ends = torch.minimum(self.edges[1:, None], self.lengths)
        return (ends - self.edges[:-1, None]).clamp(min=0)

    def pooled(self) -> Tensor:
        """λ_i (k,): total growth over the number of counted steps."""
        return self.sums.sum((0, 1)) / self.steps.sum()

    def by_sequence(self) -> Tensor:
        """(B, k); NaN for a sequence without a counted step."""
        mean = self.sums.sum(0) / self.steps[:, None]
        return mean.masked_fill((self.steps == 0)[:, None], torch.nan)

    def error_over_sequences(self) -> Tensor:
        """Standard error (k,) of the pooled exponents, sequences weighted by their counted steps."""
        return _standard_error(self.sums.sum(0), self.steps)

    def error_over_blocks(self) -> Tensor:
        """Standard error (k,) of the pooled exponents, blocks of time weighted by their counted steps."""
        return _standard_error(self.sums.sum(1), self.block_steps().sum(1))


def _standard_error(sums: Tensor, steps: Tensor) -> Tensor:
    """Standard error of the ratio Σ sums / Σ steps over independent pieces (pieces, k), (pieces,); NaN for fewer
    than two."""
    used = steps > 0
    count = int(used.sum())
    if count < 2:
        return torch.full_like(sums[0], torch.nan)
    sums, steps = sums[used], steps[used].to(sums.dtype)
    excess = sums - steps[:, None] * (sums.sum(0) / steps.sum())
    error = (excess.square().sum(0) * count / (count - 1)).sqrt() / steps.sum()
    return error.masked_fill(~sums.isfinite().all(0), torch.nan)


def kaplan_yorke(exponents: Tensor, complete: bool) -> float:
    """j + Σ_{i<=j} λ_i / |λ_{j+1}|, j the last index with a sum >= 0; `exponents` (k,) in descending order.

    0 where λ_1 < 0. Where no sum turns negative: the number of exponents if they are all there are (`complete`), else
    NaN, because more exponents are needed to tell.
    """
    values = exponents.double().cpu()
    sums = values.cumsum(0)
    below = (sums < 0).nonzero()
    if len(below) == 0:
        return float(len(values)) if complete else float("nan")
    j = int(below[0])
    if j == 0:
        return 0.0
    return j + float(sums[j - 1] / values[j].abs())


def descending(exponents: Tensor) -> Tensor:
    """The exponents (k,) sorted, largest first; stable."""
    return torch.sort(exponents, descending=True, stable=True).indices


FRAME_BYTES = 256 * 2**20
"""Approximate bytes of the frames held at once including the work space of their QR: some sequences at a time."""

PROOF_BYTES = 4 * 2**20
"""Approximate bytes of Jacobians that are written out at a time for their determinants."""


@dataclass(frozen=True)
class Lyapunov:
    """Lyapunov exponents of a layer run (or map), natural logarithms per step (per unit of time where dt is given)."""

    layer: str
    exponents: Tensor
    """λ_i (k,), descending, over all counted steps of all sequences; -inf where a direction is lost exactly."""
    se_sequences: Tensor
    """Standard error over sequences (k,); NaN for a single one."""
    se_blocks: Tensor
    """Standard error over blocks of time (k,); NaN where there is a single one."""
    by_sequence: Tensor
    """λ_i of each sequence (B, k); NaN for one that ends within the warm-up."""
    kaplan_yorke: float
    """Kaplan-Yorke dimension; NaN where k exponents do not tell."""
    log_det_residual: float
    """Worst sequence's |Σ λ_i - mean ln |det J_t||, where k = S; NaN else. ln |det| comes from an LU of each J_t."""
    warmup: int
    """Steps at the start that align the frame and are not counted."""
    longest_interval: int
    """Largest number of steps between two re-orthonormalisations."""
    log_condition: float
    """ln of the largest ratio of the scales |R_ii| at a re-orthonormalisation: rounding grows by about that ratio."""
    interval_error: float
    """Measured: largest difference of an exponent to a QR every step, over three intervals; 0 if they are of 1 step."""
    steps: Tensor
    """(B,): number of counted steps of each sequence."""
    finite_time_exponents: Tensor | None = None
    """The k largest ln σ_i(Φ) / d, (lags, k), if lags were requested."""
    lags: tuple[int, ...] = ()

    @property
    def standard_error(self) -> Tensor:
        """The larger of the two standard errors (k,): over sequences, and over blocks of time."""
        return torch.fmax(self.se_sequences, self.se_blocks)

    def rows(self) -> dict[str, Tensor]:
        """The stored quantities by name."""
        parts = (self.exponents, self.se_sequences, self.se_blocks)
        rows = {
            "lyapunov_exponents": torch.stack(parts, -1),
            "kaplan_yorke": torch.tensor(self.kaplan_yorke),
            "log_det_residual": torch.tensor(self.log_det_residual),
        }
        if self.finite_time_exponents is not None:
            rows["finite_time_exponents"] = self.finite_time_exponents
        return rows

    def coordinates(self) -> dict[str, tuple[str, ...]]:
        """Labels of the dims of `rows`."""
        numbers = tuple(str(number) for number in range(1, len(self.exponents) + 1))
        return {"exponent": numbers, "lag": tuple(map(str, self.lags))}


@torch.no_grad()
def lyapunov(
    run: LayerRun,
    k: int | None = None,
    warmup: int | None = None,
    interval: int | None = None,
    *,
    blocks: int = 10,
    lags: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
) -> Lyapunov:
    """The largest Lyapunov exponents along the recorded trajectory.

    Cost a step and sequence: one product with W_hh for k vectors; a QR of S x k each interval; an LU of S x S for the
    proof where k = S. Memory: some steps and about 256 MiB of frames at a time.

    Args:
        run: A layer run.
        k: Number of exponents. Default: all S.
        warmup: Steps that are not counted while the frame aligns itself. Default: a tenth of the run, 100 at most.
        interval: Steps between two QRs. Default: as many as keep the scales of the frame within a factor of 10^7.
        blocks: Number of pieces of time for the standard error over time.
        lags: Lags whose finite-time exponents are computed too.
        dtype: Precision of the computation.

    Returns:
        `exponents` (k,), descending, in natural logarithms per step, with standard errors over sequences and time.

    Raises:
        BadArgument: `k`, `warmup`, `interval` or `blocks` does not fit the run.
        NotExact: A state or a weight is not finite.

    Example:
        >>> rnndiag.lyapunov(layer_run, k=2).exponents.shape
        torch.Size([2])
    """
    k, warmup = _settings(run, k, warmup, interval, blocks)
    require_finite(run)
    products = jacobian_products(run, lags) if lags else None
    growth = Growth(run, k, warmup, blocks, dtype)
    pace, check = Interval(interval), _Check(growth.quarters())
    log_det = torch.zeros(run.B, dtype=torch.float64, device=run.device)
    at_once = max(1, FRAME_BYTES // (6 * k * run.S * dtype.itemsize))
    for first in range(0, run.B, at_once):
        chosen = slice(first, min(first + at_once, run.B))
        part = run if at_once >= run.B else run.select(range(run.B)[chosen])
        grown = Growth(part, k, warmup, blocks, dtype)
        log_det[chosen] = _carry_frame(part, grown, pace, check)
        growth.sums[:, chosen] = grown.sums
    return _result(run, growth, pace, check, log_det, products)


def _carry_frame(run: LayerRun, growth: Growth, pace: Interval, check: _Check) -> Tensor:
    """Carry a frame along the sequences and add to `growth`; returns Σ_t ln |det J_t| (B,) where k = S."""
    k = growth.sums.shape[-1]
    frame = TangentFrame.random((run.B, k, run.S), growth.sums.dtype, run.device)
    log_det = torch.zeros(run.B, dtype=torch.float64, device=run.device)
    for start, held in stretches(run, growth.sums.dtype):
        ranks = _lost_ranks(held)
        for t in range(start, start + held.run.T):
            alive = None if run.lengths is None else growth.lengths > t
            check.before(frame, t)
            rank = None if ranks is None else ranks[t - start]
            frame.push(held.push(t - start, frame.vectors), rank, alive)
            check.after(held, t - start, alive)
            if frame.pending >= pace.steps or growth.is_edge(t + 1):
                pending = frame.pending
                seen = frame.orthonormalise()
                check.compare(seen, pending)
                pace.see(growth.add(seen, t + 1, pending), pending)
        if k == run.S:
            log_det += _log_determinants(held, max(0, growth.warmup - start))
    return log_det


def _settings(
    run: LayerRun, k: int | None, warmup: int | None, interval: int | None, blocks: int
) -> tuple[int, int]:
    k = run.S if k is None else k
    warmup = min(100, run.T // 10) if warmup is None else warmup
    if not 1 <= k <= run.S:
        raise BadArgument(
            f"k = {k} exponents were asked of a state of size {run.S}.",
            f"Choose k from 1 to {run.S}.",
        )
    longest = run.T if run.lengths is None else int(run.lengths.max())
    if not 0 <= warmup < longest:
        raise BadArgument(
            f"A warm-up of {warmup} steps leaves nothing of a run whose longest sequence has {longest}.",
            "Choose a shorter warm-up, or record longer sequences.",
        )
    if (interval is not None and interval < 1) or blocks < 1:
        raise BadArgument(
            f"interval = {interval} and blocks = {blocks} must be 1 or more.",
            "Leave interval=None to have it chosen by the condition of the frame.",
        )
    return k, warmup


def _lost_ranks(held: Tangents) -> Tensor | None:
    """(T, B): upper bound of the rank of each J_t by its exactly zero rows; None if no row is zero."""
    ranks = held.rank()
    return ranks if bool((ranks < held.run.S).any()) else None


def _log_determinants(held: Tangents, skip: int) -> Tensor:
    """(B,): Σ_t ln |det J_t| over the counted steps of a stretch."""
    if skip >= held.run.T:
        return torch.zeros(held.run.B, dtype=torch.float64, device=held.run.device)
    total = torch.zeros(held.run.B, dtype=torch.float64, device=held.run.device)
    mask = held.run.mask()
    size = max(1, PROOF_BYTES // (held.run.B * held.run.S**2 * 8))
    for start in range(skip, held.run.T, size):
        stop = min(start + size, held.run.T)
        written = (
            jacobians(stretch(held.run, start, stop))
            if held.written is None
            else (held.written[start:stop])
        )
        values = torch.linalg.slogdet(written).logabsdet.double()
        total += torch.where(mask[start:stop], values, 0.0).sum(0)
    return total


class _Check:
    """Repeats three intervals, spread over time, with a QR every step: measures the error of longer intervals."""

    def __init__(self, starts: frozenset[int]) -> None:
        self.starts = starts
        self.twin: TangentFrame | None = None
        self.sum: Tensor | float = 0.0
        self.error = 0.0

    def before(self, frame: TangentFrame, t: int) -> None:
        """Before step t: if a checked interval starts here, start a second frame from the same vectors."""
        if t in self.starts:
            self.twin, self.sum = replace(frame), 0.0

    def after(self, held: Tangents, t: int, alive: Tensor | None) -> None:
        """Advance the second frame by one step, with a QR."""
        if self.twin is not None:
            # Ranks are not needed: directions that are lost are left out of the comparison.
            self.twin.push(held.push(t, self.twin.vectors), None, alive)
            self.sum = self.twin.orthonormalise() + self.sum

    def compare(self, seen: Tensor, steps: int) -> None:
        """At the end of an interval, compare its growth `seen` (B, k) with that of the second frame; lost
        directions are ignored."""
        if self.twin is None:
            return
        if steps > 1:
            both = (seen - self.sum)[seen.isfinite()]
            worst = float(both.abs().max()) / steps if both.numel() else 0.0
            self.error = max(self.error, worst)
        self.twin = None


def _result(
    run: LayerRun,
    growth: Growth,
    pace: Interval,
    check: _Check,
    log_det: Tensor,
    products: JacobianProducts | None,
) -> Lyapunov:
    """The exponents with their errors, and the proof that all S of them add up to the mean of ln |det J_t|."""
    exponents = growth.pooled()
    order = descending(exponents)
    by_sequence = growth.by_sequence()
    full = exponents.shape[0] == run.S
    residual = torch.nan
    if full:
        mean = log_det / growth.steps
        total = by_sequence.sum(-1)
        differs = torch.where(total == mean, 0.0, (total - mean).abs())
        residual = float(differs[growth.steps > 0].max())
    return Lyapunov(
        layer=run.name,
        exponents=exponents[order],
        se_sequences=growth.error_over_sequences()[order],
        se_blocks=growth.error_over_blocks()[order],
        by_sequence=by_sequence[:, order],
        kaplan_yorke=kaplan_yorke(exponents[order], complete=full),
        log_det_residual=residual,
        warmup=growth.warmup,
        longest_interval=pace.longest,
        log_condition=pace.log_condition,
        interval_error=check.error,
        steps=growth.steps,
        finite_time_exponents=None
        if products is None
        else products.finite_time_exponents[:, : len(order)],
        lags=() if products is None else products.lags,
    )
