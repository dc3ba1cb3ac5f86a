"""Growth summed over time, block by block: means and standard errors of Lyapunov exponents in bounded memory."""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun


class Growth:
    """Σ ln |R_ii| by block of time and sequence, counted after the warm-up and within each sequence's length."""

    def __init__(self, run: LayerRun, k: int, warmup: int, blocks: int, dtype: torch.dtype) -> None:
        self.T, self.warmup = run.T, warmup
        lengths = torch.full((run.B,), run.T) if run.lengths is None else run.lengths
        self.lengths = lengths.to(run.device)
        self._padded = run.lengths is not None
        self.steps = (self.lengths - warmup).clamp(min=0)
        """(B,): counted steps."""
        blocks = min(blocks, run.T - warmup)
        edges = torch.linspace(warmup, run.T, blocks + 1).round().long()
        self.edges = edges.to(run.device)
        self._stops: list[int] = edges.tolist()
        self._edges = frozenset(self._stops)
        self.sums = torch.zeros(blocks, run.B, k, dtype=dtype, device=run.device)
        """(blocks, B, k)"""

    def is_edge(self, t: int) -> bool:
        """Whether a block, or the warm-up, ends after t steps: no interval may reach across."""
        return t in self._edges

    def quarters(self) -> frozenset[int]:
        """Steps at which a block starts, about a quarter, half and three quarters through the counted time."""
        starts = self._stops[:-1]
        return frozenset(starts[len(starts) * quarter // 4] for quarter in (1, 2, 3))

    def add(self, seen: Tensor, t: int, steps: int) -> Tensor:
        """Take the growth `seen` (B, k) of `steps` steps, the last of which is step t (1..T).

        Gives it back with NaN where a sequence was over already.
        """
        counted = seen
        if self._padded:
            over = (self.lengths <= t - steps)[:, None]
            counted, seen = torch.where(over, 0.0, seen), seen.masked_fill(over, torch.nan)
        if t > self.warmup:
            self.sums[bisect_left(self._stops, t) - 1] += counted
        return seen

    def block_steps(self) -> Tensor:
        """(blocks, B): counted steps of each block."""
        ends = torch.minimum(self.edges[1:, None], self.lengths)
        return (ends - self.edges[:-1, None]).clamp(min=0)

    def pooled(self) -> Tensor:
        """λ_i (k,): all growth over all counted steps."""
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
    """Of a ratio Σ sums / Σ steps over independent pieces (pieces, k), (pieces,); NaN for fewer than two pieces."""
    used = steps > 0
    count = int(used.sum())
    if count < 2:
        return torch.full_like(sums[0], torch.nan)
    sums, steps = sums[used], steps[used].to(sums.dtype)
    excess = sums - steps[:, None] * (sums.sum(0) / steps.sum())
    error = (excess.square().sum(0) * count / (count - 1)).sqrt() / steps.sum()
    return error.masked_fill(~sums.isfinite().all(0), torch.nan)
