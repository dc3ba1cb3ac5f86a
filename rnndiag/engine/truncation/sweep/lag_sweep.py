"""The lag sweep: every window at once, exactly, from one pass over all lags."""

from __future__ import annotations

import torch

from rnndiag.engine.adjoints import Adjoints
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.chains.stack import Runs, chain_of
from rnndiag.engine.truncation.sweep.budgeted_sweep import budgeted_sweep
from rnndiag.engine.truncation.sweep.chunk_scores import (
    chunk_scores,
    default_sizes,
    few_sizes,
)
from rnndiag.engine.truncation.sweep.credit import (
    CreditAccumulator,
    lag_count,
    log_matrix,
    profile_of,
)
from rnndiag.engine.truncation.sweep.groups import few_groups, group_count, regrouped
from rnndiag.engine.truncation.sweep.lag_cotangents import lag_cotangents, rows_of
from rnndiag.engine.truncation.sweep.lag_sweep_result import LagSweep, unavailable
from rnndiag.engine.truncation.sweep.noise import sequence_noise
from rnndiag.engine.truncation.sweep.parameter_layout import ParameterLayout, layout_of
from rnndiag.engine.truncation.sweep.sampling import Sampled, Sampling, choose, sample
from rnndiag.engine.truncation.sweep.sequence_statistics import SequenceStatistics
from rnndiag.engine.truncation.sweep.stopping import StoppingRule
from rnndiag.engine.truncation.sweep.tails import TailAccumulator, Tails
from rnndiag.engine.truncation.sweep.truncated_adjoints import gradient_of, total_adjoint
from rnndiag.errors import BadArgument

SEED = 0
"""Seed of the sampling where no generator is given: the same call samples the same."""


@torch.inference_mode(False)
@torch.no_grad()
def lag_sweep(
    layer_run: Runs,
    max_lag: int | None = None,
    *,
    budget: float | None = 3.0,
    samples: int | tuple[int, ...] | None = None,
    anchors: int | None = None,
    lag_gradients: bool = False,
    chunks: tuple[int, ...] | None = None,
    independent: bool = True,
    generator: torch.Generator | None = None,
    adj: Adjoints | None = None,
) -> LagSweep:
    """All windows τ = 1 .. D of one recorded step, with credit, tails, chunk sizes, systematic part and noise.

    layer_run: a LayerRun (layer semantics), or the runs of one stack, lowest first (stack semantics).
    max_lag: D, the number of lags: 0 .. D-1 (None: T).
    budget: what the sweep aims to cost, in plain training steps of these layers. Sequences and losses of the profile
        are sampled and windows chosen for it, `sampling.sentence` says which and how much; small problems fit whole.
        The fewest windows of the whole batch may alone take more. None: nothing is sampled.
    samples, anchors: how many sequences, and how many of the losses' output steps, to look at, chosen by hand.
    lag_gradients: keep every c_d (exact sweeps only).
    chunks: chunk sizes k to score (None: 1, 2, 3, 4, 6, 8, ... up to T).
    independent: whether the loss is a sum over sequences; if not, noise and systematic part are not available.
    adj: the adjoints of the layer run, where they have been made already: spares a sampled sweep to make them again.
    """
    if adj is not None and adj.run is not layer_run:
        raise BadArgument(
            f"The adjoints given are those of {adj.run!r}, not of the layer run that is swept.",
            "Give `adjoints(layer_run)`, or leave them out; a stack has none.",
        )
    chain = chain_of(layer_run)
    draw = generator or torch.Generator().manual_seed(SEED)
    sampling = choose(
        chain, lag_count(chain, max_lag), None if lag_gradients else budget, samples, anchors, draw
    )
    if sampling.blocked and budget is not None:
        return budgeted_sweep(chain, sampling, draw, budget, chunks, independent, adj)
    taken = sample(chain, sampling, draw)
    return sweep_chain(chain, taken, sampling, lag_gradients, chunks, independent)


def sweep_chain(
    chain: Chain,
    taken: Sampled,
    sampling: Sampling,
    keep: bool,
    chunks: tuple[int, ...] | None,
    independent: bool,
) -> LagSweep:
    """The sweep over a chain as it was sampled."""
    layout, part = layout_of(chain), taken.chain
    population = SequenceStatistics(layout, chain.B, len(sampling.sequences))
    delta = total_adjoint(part)
    apart = group_count(layout, population.sampled, part.direct[0], population.sampled)
    by_sequence = gradient_of(part, layout, delta, apart)
    full = regrouped(by_sequence, few_groups(by_sequence))
    rows = rows_of(part)
    ledger = CreditAccumulator(part, rows, sampling.lags, taken.weights, not population.whole)
    tails = TailAccumulator(part, population, full, sampling, keep)
    ending = StoppingRule(rows, sampling.lags)
    for lag in lag_cotangents(part, rows, sampling.lags, tails.wants_visits):
        ledger.add(lag)
        tails.add(lag)
        if sampling.may_stop and ending.after(lag):
            sampling = sampling.stopped(lag.d + 1)
            tails.stop(lag)
            break
    found, credit = tails.finish(independent), ledger.finish(sampling.lags)
    if chunks is None:
        chunks = default_sizes(chain.T) if sampling.complete else few_sizes(chain.T)
    notes = []
    if found.faint:
        notes.append(
            f"{len(found.faint)} of {sampling.lags} lag gradients, from lag {found.faint[0]} on, are given as upper "
            "bounds: all of them together are below one rounding of the gradient."
        )
    noise = sequence_noise(part, population, delta, by_sequence) if independent else float("nan")
    notes += unavailable(chain, independent)
    if not sampling.complete:
        notes.append(
            f"{sampling.sentence} The tails and window biases are those of the losses looked at; they hold the noise "
            "of the sample, so for the whole batch they are upper bounds."
        )
    shares = (population.sampled / chain.B, sampling.outputs / max(1, sampling.of_outputs))
    return LagSweep(
        name=chain.name,
        lags=sampling.lags,
        log_credit=log_matrix(credit),
        profile=profile_of(credit, *shares),
        tails=found,
        chunks=chunk_scores(part, population, full, chunks),
        noise=noise,
        gradient=layout.split(full.sum(0) * (chain.B / population.sampled)),
        sampling=sampling,
        lag_gradients=tails.lag_gradients(),
        notes=tuple(notes),
    )


def exact_tails(chain: Chain, layout: ParameterLayout) -> Tails:
    """The tails of a chain as it is, every sequence, loss and lag."""
    sampling = choose(chain, chain.T, None, None, None, torch.Generator())
    population = SequenceStatistics(layout, chain.B, chain.B)
    full = gradient_of(chain, layout, total_adjoint(chain))
    ledger = TailAccumulator(chain, population, full, sampling, keep=False)
    for lag in lag_cotangents(chain, rows_of(chain), chain.T, ledger.wants_visits):
        ledger.add(lag)
    return ledger.finish(False)
