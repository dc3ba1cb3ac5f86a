"""The sweep for a few training steps: the profile from sampled losses, some windows from the whole batch.

Windows cannot be had from a sample of sequences: what averages out between them in the batch's gradient would stand out
in the sample's. So every window that is measured counts all sequences and losses (`blocked`), and it is the number of
windows, and how closely each is known, that the budget decides: by the clock, on this very layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from rnndiag.engine.adjoints import Adjoints
from rnndiag.engine.cells import State
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.blocked_tails import (
    BlockedTails,
    LagBlock,
    doubling,
    first_width,
)
from rnndiag.engine.truncation.sweep.chunk_scores import (
    ChunkScores,
    chunk_scores,
    score,
    scores,
)
from rnndiag.engine.truncation.sweep.credit import (
    CreditAccumulator,
    Profile,
    log_matrix,
    profile_of,
)
from rnndiag.engine.truncation.sweep.groups import few_groups, group_count, regrouped
from rnndiag.engine.truncation.sweep.lag_cotangents import lag_cotangents
from rnndiag.engine.truncation.sweep.lag_sweep_result import LagSweep, unavailable
from rnndiag.engine.truncation.sweep.noise import sequence_noise
from rnndiag.engine.truncation.sweep.parameter_layout import layout_of
from rnndiag.engine.truncation.sweep.sampled_losses import SampledLosses, drawn
from rnndiag.engine.truncation.sweep.sampling import Sampling
from rnndiag.engine.truncation.sweep.scratch import Scratch
from rnndiag.engine.truncation.sweep.sequence_statistics import SequenceStatistics
from rnndiag.engine.truncation.sweep.stopping import StoppingRule
from rnndiag.engine.truncation.sweep.tails import assembled
from rnndiag.engine.truncation.sweep.truncated_adjoints import (
    gradient_of,
    segments,
    total_adjoint,
)

ADJOINT_SHARE = 1.0
"""What diagonal derivatives, total adjoints and the gradient take of a plain training step, whose length is told from
theirs: 0.8 to 0.9, measured on a CPU; rather more, so that a budget is kept."""
GRADIENT_SHARE = 0.6
"""The same without the adjoints, where they are given: 0.45 to 0.6."""
BLOCK_SHARE = 0.3
"""What one block takes of a plain training step, at least: 0.3 to 0.55. The first call of a process is slow to start,
and its length would be told too large from that alone."""
CHUNKS = (64, 16, 32, 128, 4)
"""Chunk sizes that are scored beside the free one, in this order, as far as the budget goes."""


class SweepBudget:
    """What has been spent since the start, in seconds, of so many plain training steps."""

    def __init__(self, steps: float) -> None:
        self.steps, self.start = steps, time.perf_counter()
        self.seconds = math.inf

    def calibrate(self, seconds: float, share: float) -> None:
        """What took so long is this share of a plain step; of several answers the smallest counts."""
        self.seconds = min(self.seconds, self.steps * seconds / share)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def allows(self, seconds: float) -> bool:
        """Whether so many more fit."""
        return self.spent + seconds <= self.seconds


def budgeted_sweep(
    chain: Chain,
    sampling: Sampling,
    draw: torch.Generator,
    budget: float,
    chunks: tuple[int, ...] | None,
    independent: bool,
    adj: Adjoints | None = None,
) -> LagSweep:
    """The profile from sampled losses, and some windows and chunks from the whole batch."""
    spent, most = SweepBudget(budget), sampling.lags
    layout, whole = layout_of(chain), chain.prepared()
    population = SequenceStatistics(layout, chain.B, chain.B)
    delta = total_adjoint(whole) if adj is None else adj.parts
    apart = group_count(layout, chain.B, delta[0], chain.B)
    known = None if adj is None or adj.a_ih is None else adj
    scratch = Scratch()
    by_sequence = gradient_of(whole, layout, delta, apart, adj=known, scratch=scratch)
    spent.calibrate(spent.spent, ADJOINT_SHARE if adj is None else GRADIENT_SHARE)
    full = regrouped(by_sequence, few_groups(by_sequence))
    noise = sequence_noise(whole, population, delta, by_sequence) if independent else float("nan")
    matrix, profile, sampling = sampled_credit(whole, drawn(whole, sampling, draw), sampling)
    tails, each = blocked_tails(whole, population, full, delta, most, profile, spent, scratch)
    sampling = sampling.with_windows({w: m for w, m in tails.widths.items() if w <= most})
    scores = (
        few_chunks(whole, population, full, tails, each, spent)
        if chunks is None
        else chunk_scores(whole, population, full, chunks)
    )
    return LagSweep(
        name=chain.name,
        lags=sampling.lags,
        log_credit=matrix,
        profile=profile,
        tails=assembled(population, tails.found, {}, most, independent),
        chunks=scores,
        noise=noise,
        gradient=layout.split(full.sum(0)),
        sampling=sampling,
        notes=(*unavailable(chain, independent), sampling.sentence),
    )


def sampled_credit(
    chain: Chain, anchors: SampledLosses, sampling: Sampling
) -> tuple[Tensor, Profile, Sampling]:
    """ln C[u, s], the profile, and the sampling with the lags at which it ended."""
    if anchors.share == 1:
        sampling = sampling.with_every_loss
    every = sampling.outputs == sampling.of_outputs
    ledger = CreditAccumulator(
        chain,
        anchors.rows,
        sampling.lags,
        anchors.stands_for,
        by_column=every and anchors.share < 1,
        multiplied=False,
        count=anchors.count,
    )
    ending = StoppingRule(anchors.rows, sampling.lags)
    for lag in lag_cotangents(chain, anchors.rows, sampling.lags, lambda _: False):
        ledger.add(lag)
        if ending.after(lag):
            sampling = sampling.stopped(lag.d + 1)
            break
    found = ledger.finish(sampling.lags)
    # every output has sequences of its own, so what differs between outputs is all that the sample can be off by
    shares = (anchors.share, 1.0) if every else (1.0, anchors.share)
    return log_matrix(found), profile_of(found, *shares), sampling


def blocked_tails(
    chain: Chain,
    population: SequenceStatistics,
    full: Tensor,
    delta: State,
    most: int,
    profile: Profile,
    budget: SweepBudget,
    scratch: Scratch | None = None,
) -> tuple[BlockedTails, float]:
    """Windows up to `most`, closer around the one to be recommended as far as the budget goes; seconds a block.

    Windows are measured until the bias has fallen for what they tell, whatever it costs, and further within the budget.
    """
    tails = BlockedTails(chain, population, full, delta, scratch)
    start, each = budget.spent, 0.0

    def within_budget() -> Iterator[LagBlock]:
        nonlocal each
        for number, block in enumerate(doubling(chain.T, most, first_width(profile.log))):
            if number:
                each = (budget.spent - start) / number
                budget.calibrate(each, BLOCK_SHARE)
            if tails.settled and not budget.allows(each):
                return
            yield block

    tails.walk(within_budget())
    each = (budget.spent - start) / max(1, len(tails.widths))
    budget.calibrate(each, BLOCK_SHARE)
    tails.refine(lambda lags: budget.allows(each * (lags + 1) / 2))
    return tails, each


def few_chunks(
    chain: Chain,
    population: SequenceStatistics,
    full: Tensor,
    tails: BlockedTails,
    seconds: float,
    budget: SweepBudget,
) -> ChunkScores:
    """Chunks of the width of the first block, whose tail is known, and as many more as fit; `seconds` a block."""
    found = {tails.first_width: score(population, full, full - tails.first)}
    seconds *= 2  # as many rows, in more and smaller steps
    for k in CHUNKS:
        if k >= chain.T or k in found:
            continue
        if not budget.allows(seconds):
            break
        before = budget.spent
        cut = gradient_of(chain, population.layout, segments(chain, k, k), len(full))
        found[k] = score(population, full, cut)
        seconds = budget.spent - before
    return scores(found)
