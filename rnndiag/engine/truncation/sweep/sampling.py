"""Chooses what a lag sweep measures within a budget: which losses it follows, how many lags, which windows.

Cost is counted in row-steps: one loss of one sequence moved back by one step. A plain training step (forward and
backward) makes T * B of them. A sweep that fits its budget, or takes next to no time, is exact: every loss, lag and
window. A larger one follows the losses at some output steps of every sequence, for the credit profile alone, and takes
the gradients of some windows from the whole batch. Windows are never estimated from a sample: in a sample's gradient
less averages out between losses than in the batch's, so that windows look worse than they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.lag_cotangents import Rows, rows_of
from rnndiag.errors import require_whole

# Measured on a CPU with benchmarks/truncation.py, in row-steps of a plain training step.
ROW_COST = 0.6
"""Cost of one row-step. Without lag gradients it is less, 0.4 for an LSTM and up to 0.6 for other cells."""
LAG_COST = 60.0
"""Fixed cost of one lag."""
STEP_COST = 24.0
"""Fixed cost of one time step of a plain training step."""
WINDOW_COST = 150.0
"""Fixed cost of the gradient statistics of one window."""

LEAST_OUTPUTS = 12
"""Losses are sampled at no fewer than this many output steps."""
CREDIT_SHARE = 0.3
"""Share of the budget of a sampled sweep for the credit profile; the rest is for windows."""
LEFT_OUT = 2e-3
"""A sampled profile stops where at most this share of the credit lies at longer lags, if it decays no further."""
SMALL_SECONDS = 0.15
"""A sweep that takes about this many seconds or less is never sampled."""


@dataclass(frozen=True)
class Sampling:
    """What a sweep measured, out of how much."""

    sequences: int
    """Sequences in the sweep, B."""
    of_sequences: int
    """Sequences in the batch."""
    outputs: int
    """Output steps whose losses were followed for the credit profile."""
    of_outputs: int
    """Output steps that have a loss."""
    lags: int
    """D: the credit profile covers lags 0 .. D-1."""
    of_lags: int
    """T."""
    windows: tuple[int, ...]
    """The windows τ whose gradients were measured, ascending."""
    widths: tuple[int, ...] = ()
    """For a sampled sweep: number of steps to within which each of `windows` is known."""
    sampled: bool = False
    """True where not every loss was followed or not every window was measured."""
    stopped_early: bool = False
    """True where the profile stopped before the last lag because at most `LEFT_OUT` of the credit lies beyond."""

    def stopped(self, lags: int) -> Sampling:
        """The sampling of a profile that stopped after `lags` lags."""
        return replace(self, lags=lags, stopped_early=True)

    def with_windows(self, widths: dict[int, int]) -> Sampling:
        """The sampling with the measured windows, each known within `widths[window]` steps."""
        windows = tuple(sorted(widths))
        return replace(self, windows=windows, widths=tuple(widths[w] for w in windows))

    def credit_cost(self, chain: Chain) -> float:
        """Cost of the credit profile that was measured, in plain training steps."""
        share = self.outputs / max(1, self.of_outputs)
        return credit_cost(chain.outputs(), self.lags, share)

    @property
    def complete(self) -> bool:
        """True if every loss of every sequence was followed."""
        return self.outputs == self.of_outputs and self.sequences == self.of_sequences

    @property
    def numbers(self) -> tuple[int, int, int, int, int, int]:
        """(sequences, of_sequences, outputs, of_outputs, lags, of_lags), as a run stores them."""
        return (
            self.sequences,
            self.of_sequences,
            self.outputs,
            self.of_outputs,
            self.lags,
            self.of_lags,
        )

    @property
    def sentence(self) -> str:
        """The sampling in one sentence."""
        parts = []
        if self.sequences < self.of_sequences:
            parts.append(f"{self.sequences} of {self.of_sequences} sequences")
        if self.outputs < self.of_outputs:
            parts.append(f"{self.outputs} of {self.of_outputs} output steps for the profile")
        if self.lags < self.of_lags:
            beyond = f", beyond which lies less than {LEFT_OUT:.1%} of the credit"
            parts.append(
                f"lags 0 to {self.lags - 1} of {self.of_lags}{beyond * self.stopped_early}"
            )
        if self.widths:
            parts.append(
                f"gradients of {len(self.windows)} windows of {self.of_lags}, of all sequences and losses"
                f"{self._precision}"
            )
        return "Sampled: " + ", ".join(parts) + "." if parts else "Nothing was sampled: exact."

    @property
    def _precision(self) -> str:
        """The relative precision of the windows, in words."""
        pairs = list(zip(self.widths, self.windows, strict=True))
        first = [width for width, window in pairs if width >= window]
        others = [width / window for width, window in pairs if width < window]
        known = (
            f", each known to within {max(others):.0%} of its length or better" if others else ""
        )
        return known + (f", but for the first, of lags 1 to {max(first)}" if first else "")


def choose(
    chain: Chain,
    lags: int,
    budget: float | None,
    anchors: int | None = None,
    of_sequences: int | None = None,
) -> Sampling:
    """The sampling that fits a budget.

    Args:
        chain: The chain to sweep.
        lags: Number of lags.
        budget: Cost limit in plain training steps; None: no limit.
        anchors: Number of output steps to follow, chosen by hand.
        of_sequences: Sequences in the batch that the chain's were taken from. Default: the chain's.
    """
    if anchors is not None:
        require_whole("anchors", anchors, "Give a number of 1 or more, or None.")
    losses = chain.outputs()
    of_outputs = int(losses.any(1).sum())
    outputs = of_outputs if anchors is None else min(anchors, of_outputs)
    too_large = (
        budget is not None
        and exact_cost(losses, lags) > budget
        and exact_seconds(chain, losses, lags) > SMALL_SECONDS
    )
    most_per_sequence = int(losses.sum(0).max())
    if budget is not None and too_large and anchors is None and most_per_sequence > LEAST_OUTPUTS:
        fixed = credit_cost(losses, lags, 0.0)
        affordable = budget * CREDIT_SHARE - fixed
        per_output = (credit_cost(losses, lags) - fixed) / of_outputs
        outputs = min(of_outputs, max(LEAST_OUTPUTS, int(affordable / per_output)))
    sampled = too_large or outputs < of_outputs
    return Sampling(
        chain.B,
        chain.B if of_sequences is None else of_sequences,
        outputs,
        of_outputs,
        lags,
        chain.T,
        windows=() if sampled else tuple(range(1, lags + 1)),
        sampled=sampled,
    )


def _row_steps(losses: Tensor, lags: int) -> float:
    """Row-steps of a sweep over the losses marked in (T, B)."""
    depth = torch.arange(1, len(losses) + 1, device=losses.device).clamp(max=lags)
    return float((losses.sum(1) * depth).sum())


def _in_plain_steps(losses: Tensor, row_steps: float) -> float:
    T, B = losses.shape
    return row_steps / (T * (B + STEP_COST))


def exact_cost(losses: Tensor, lags: int) -> float:
    """Cost of an exact sweep over the losses marked in (T, B), in plain training steps."""
    rows = ROW_COST * _row_steps(losses, lags)
    return 1 + _in_plain_steps(losses, rows + (LAG_COST + WINDOW_COST) * lags)


def credit_cost(losses: Tensor, lags: int, share: float = 1.0) -> float:
    """Cost of the credit profile alone, of a share of the losses marked in (T, B), in plain training steps."""
    rows = ROW_COST * _row_steps(losses, lags) * share
    return _in_plain_steps(losses, rows + LAG_COST * lags)


def exact_seconds(chain: Chain, losses: Tensor, lags: int) -> float:
    """Rough duration of an exact sweep on one CPU core, in seconds."""
    weights = sum(w.numel() for link in chain.links for w in link.run.weights.values())
    return lags * len(chain.links) * 5e-4 + _row_steps(losses, lags) * weights * 4 / 40e9


@dataclass(frozen=True)
class SampledRows:
    """The losses that a sweep follows."""

    rows: Rows
    weights: Tensor | None = None
    """(T,): number of output steps that each followed one represents, 0 if not followed; None: all are followed."""


def sampled_rows(chain: Chain, sampling: Sampling, draw: torch.Generator) -> SampledRows:
    """The losses of all sequences at `sampling.outputs` output steps: one drawn per equal stretch of them."""
    if sampling.outputs == sampling.of_outputs:
        return SampledRows(rows_of(chain))
    hit = chain.outputs()
    steps = hit.any(1).nonzero().squeeze(1).cpu()
    edges = torch.linspace(0, len(steps), sampling.outputs + 1).round().long()
    width = edges[1:] - edges[:-1]
    place = edges[:-1] + (torch.rand(sampling.outputs, generator=draw) * width).long()
    weights = torch.zeros(chain.T, dtype=torch.float64)
    weights[steps[place]] = width.double()
    drawn = steps[place].to(hit.device)
    return SampledRows(Rows(drawn, drawn), weights.to(hit.device))
