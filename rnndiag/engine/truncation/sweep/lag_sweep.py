"""The lag sweep: the bias of every truncation window, and the credit of every lag, of one recorded step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rnndiag.engine.adjoints import Adjoints
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.chains.stack import Runs, chain_of
from rnndiag.engine.truncation.sweep.blocked_tails import BlockedTails, first_width
from rnndiag.engine.truncation.sweep.chunk_scores import (
    ChunkScore,
    chunk_gradient,
    chunk_score,
    chunk_scores,
    default_sizes,
)
from rnndiag.engine.truncation.sweep.credit import (
    Credit,
    CreditAccumulator,
    lag_count,
    log_matrix,
    profile_of,
)
from rnndiag.engine.truncation.sweep.lag_cotangents import lag_cotangents, rows_of
from rnndiag.engine.truncation.sweep.lag_sweep_result import LagSweep
from rnndiag.engine.truncation.sweep.parameter_layout import ParameterLayout, layout_of
from rnndiag.engine.truncation.sweep.sampling import Sampling, choose, sampled_rows
from rnndiag.engine.truncation.sweep.sequence_statistics import (
    group_count,
    sequence_noise,
    tail_groups,
)
from rnndiag.engine.truncation.sweep.stopping import StoppingRule
from rnndiag.engine.truncation.sweep.tails import TailAccumulator, Tails, assembled
from rnndiag.engine.truncation.sweep.truncated_adjoints import gradient_of, total_adjoint
from rnndiag.errors import BadArgument, require_whole

BUDGET = 6.0
"""Default cost limit of a lag sweep, in plain training steps."""
SEED = 0
"""Default seed of the sampling, so that equal calls sample equally."""
GRADIENT_COST = 1.0
"""Cost of the adjoints and the full gradient, in plain training steps."""
SAMPLED_CHUNKS = (64, 16, 32, 128, 4)
"""Chunk sizes scored by a sampled sweep, in this order, within the budget."""
CHUNK_COST = 1.0
"""Cost of the gradient of one chunk size, in plain training steps."""


@torch.inference_mode(False)
@torch.no_grad()
def lag_sweep(
    layer_run: Runs,
    max_lag: int | None = None,
    *,
    budget: float | None = BUDGET,
    samples: int | tuple[int, ...] | None = None,
    anchors: int | None = None,
    lag_gradients: bool = False,
    chunks: tuple[int, ...] | None = None,
    independent: bool | None = None,
    generator: torch.Generator | None = None,
    adj: Adjoints | None = None,
) -> LagSweep:
    """Credit by lag and the bias of every truncation window, of one recorded step.

    A sweep that fits the budget is exact. A larger one follows the losses at some output steps only, for the credit
    profile, which then has a standard error, and takes some windows from the gradient of the whole batch, each of them
    known within `sampling.widths` steps. `sampling.sentence` says what was measured.

    Args:
        layer_run: A layer run, or the layer runs of a stack, lowest first.
        max_lag: Number of lags D: lags 0 .. D-1 and windows up to D. Default: T.
        budget: Cost limit in plain training steps of these layers. Windows are measured until their bias has fallen
            below 10 %, which may take more. None: exact.
        samples: Sweep these sequences only, or as many drawn at random. All results are theirs, not the batch's.
        anchors: Number of output steps whose losses are followed for the credit profile. Default: by budget.
        lag_gradients: Keep c_d of every lag; makes the sweep exact.
        chunks: Chunk sizes k to score. Default: 1, 2, 3, 4, 6, 8, ... up to T, fewer where sampled.
        independent: Whether the loss is a sum over sequences; if not, noise and systematic part are NaN. None: as the
            layer run says.
        generator: Source of the random draws. Default: a fixed seed.
        adj: `adjoints(layer_run)`, where they are known already.

    Returns:
        `window_bias[τ]` is |g_τ - g| / |g| for a window of τ states, 0 <= τ <= D, `credit_profile` the credit by lag.

    Raises:
        BadArgument: `max_lag`, `samples` or `anchors` is less than 1, or `adj` belongs to another layer run.

    Example:
        >>> with rnndiag.probe(model) as probe:
        ...     loss_of(model, batch).backward()
        >>> sweep = rnndiag.lag_sweep(probe.layer_runs[0])
        >>> sweep.window_bias[0], bool(sweep.window_bias[12] < 1e-6)
        (tensor(1., dtype=torch.float64), True)
    """
    if adj is not None and adj.run is not layer_run:
        raise BadArgument(
            f"The adjoints given are those of {adj.run!r}, not of the layer run that is swept.",
            "Give `adjoints(layer_run)`, or leave them out; a stack has none.",
        )
    chain = chain_of(layer_run)
    draw = generator or torch.Generator().manual_seed(SEED)
    batch = chain.B
    if samples is not None:
        chain, adj = chain.select(drawn_sequences(batch, samples, draw)), None
    lags = lag_count(chain, max_lag)
    if lag_gradients:
        budget, anchors = None, None
    sampling = choose(chain, lags, budget, anchors, batch)
    return sweep_chain(
        chain.prepared(),
        sampling,
        draw,
        budget=budget,
        keep=lag_gradients,
        chunks=chunks,
        independent=chain.independent if independent is None else independent,
        adj=adj,
    )


def drawn_sequences(
    batch: int, samples: int | tuple[int, ...], draw: torch.Generator
) -> tuple[int, ...]:
    """Indices of the sequences for a sweep over a part of the batch."""
    if isinstance(samples, tuple):
        return samples
    require_whole("samples", samples, "Give a number of 1 or more, or None.")
    return tuple(sorted(torch.randperm(batch, generator=draw)[:samples].tolist()))


def sweep_chain(
    chain: Chain,
    sampling: Sampling,
    draw: torch.Generator,
    *,
    budget: float | None = None,
    keep: bool = False,
    chunks: tuple[int, ...] | None = None,
    independent: bool = True,
    adj: Adjoints | None = None,
) -> LagSweep:
    """The sweep of a prepared chain with this sampling; other arguments as in `lag_sweep`."""
    layout, lags = layout_of(chain), sampling.lags
    delta = total_adjoint(chain) if adj is None else adj.parts
    known = None if adj is None or adj.a_ih is None else adj
    groups = group_count(layout, chain.B, delta[0])
    by_sequence = gradient_of(chain, layout, delta, groups, adj=known)
    noise = sequence_noise(chain, layout, delta, by_sequence) if independent else math.nan
    full = tail_groups(by_sequence)
    kept: dict[str, Tensor] = {}
    scores: dict[int, ChunkScore] = {}
    if sampling.sampled:
        left = math.inf if budget is None else budget - GRADIENT_COST
        credit, sampling = sampled_credit(chain, sampling, draw)
        unsampled = 1 - sampling.outputs / max(1, sampling.of_outputs)
        profile = profile_of(credit, unsampled)
        left -= sampling.credit_cost(chain)
        blocks = BlockedTails(chain, layout, full, delta)
        left -= blocks.measure(lags, first_width(profile.log), left)
        tails = assembled(layout, blocks.tails, lags, independent)
        sampling = sampling.with_windows({w: m for w, m in blocks.widths.items() if w <= lags})
        if chunks is None:
            tail = blocks.first_tail
            scores[blocks.first_width] = chunk_score(layout, full, full - tail)
            chunks = tuple(k for k in SAMPLED_CHUNKS if k < chain.T and k not in scores)
            chunks = chunks[: max(0, int(min(left / CHUNK_COST, len(chunks))))]
    else:
        credit, tails, kept = exact_tails(chain, layout, full, lags, keep, independent)
        profile = profile_of(credit)
        chunks = default_sizes(chain.T) if chunks is None else chunks
    for k in chunks:
        cut = full if k >= chain.T else chunk_gradient(chain, layout, k, len(full))
        scores[k] = chunk_score(layout, full, cut)
    return LagSweep(
        name=chain.name,
        lags=sampling.lags,
        log_credit=log_matrix(credit),
        profile=profile,
        tails=tails,
        chunks=chunk_scores(scores, independent),
        noise=noise,
        gradient=layout.split(full.sum(0)),
        sampling=sampling,
        loss_weights=credit.weights,
        lag_gradients=kept,
        notes=_notes(chain, sampling, independent),
    )


def exact_tails(
    chain: Chain,
    layout: ParameterLayout,
    full: Tensor,
    lags: int,
    keep: bool = False,
    independent: bool = True,
) -> tuple[Credit, Tails, dict[str, Tensor]]:
    """Credit, tails and, on request, lag gradients of every loss and lag."""
    rows = rows_of(chain)
    credit = CreditAccumulator(chain, rows, lags)
    tails = TailAccumulator(chain, layout, full, lags, keep)
    for lag in lag_cotangents(chain, rows, lags):
        credit.add(lag)
        tails.add(lag)
    return credit.finish(lags), tails.finish(independent), tails.lag_gradients()


def sampled_credit(
    chain: Chain, sampling: Sampling, draw: torch.Generator
) -> tuple[Credit, Sampling]:
    """Credit of the sampled losses, and the sampling with the lags at which it stopped."""
    sampled = sampled_rows(chain, sampling, draw)
    credit = CreditAccumulator(chain, sampled.rows, sampling.lags, sampled.weights)
    stopping = StoppingRule(sampled.rows, sampling.lags)
    for lag in lag_cotangents(chain, sampled.rows, sampling.lags, gradients=False):
        credit.add(lag)
        if stopping.should_stop(lag):
            sampling = sampling.stopped(lag.d + 1)
            break
    return credit.finish(sampling.lags), sampling


def _notes(chain: Chain, sampling: Sampling, independent: bool) -> tuple[str, ...]:
    """What is not available and why, and what was sampled."""
    notes = []
    if not independent:
        notes.append("The loss mixes sequences: no noise yardstick and no systematic part.")
    elif chain.B < 2:
        notes.append("One sequence only: no noise yardstick and no systematic part.")
    if sampling.sampled or not sampling.complete:
        notes.append(sampling.sentence)
    return tuple(notes)
