"""The lag sweep: every window at once, exactly, from one pass over all lags."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rnndiag.engine.adjoints import Adjoints
from rnndiag.engine.truncation.anchors import drawn
from rnndiag.engine.truncation.chain import Chain
from rnndiag.engine.truncation.chunks import (
    ChunkScores,
    chunk_scores,
    default_sizes,
    few_sizes,
)
from rnndiag.engine.truncation.credit import (
    CreditLedger,
    Profile,
    lag_count,
    log_matrix,
    profile_of,
)
from rnndiag.engine.truncation.noise import group_count, sequence_noise
from rnndiag.engine.truncation.parameters import ALL, Layout, layout_of
from rnndiag.engine.truncation.population import Population
from rnndiag.engine.truncation.quick import (
    ADJOINT_SHARE,
    GRADIENT_SHARE,
    Budget,
    blocked_tails,
    few_chunks,
    sampled_credit,
)
from rnndiag.engine.truncation.sampling import Sampled, Sampling, choose, sample
from rnndiag.engine.truncation.stack import Runs, chain_of
from rnndiag.engine.truncation.tails import TailLedger, Tails, assembled
from rnndiag.engine.truncation.travel import rows_of, travel
from rnndiag.engine.truncation.walks import gradient_of, total_adjoint
from rnndiag.errors import BadArgument

SEED = 0
"""Seed of the sampling where no generator is given: the same call samples the same."""
GROUPS = 8
"""Groups of sequences whose tails are kept apart where those of all sequences would take more than `APART_BYTES`."""
APART_BYTES = 2**20


@dataclass(frozen=True)
class LagSweep:
    """What one sweep found. Lags d = 0 .. D-1, windows τ = 0 .. D; NaN where something was not measured."""

    name: str
    lags: int
    """D."""
    log_credit: Tensor
    """ln C[u, s] (T, T)."""
    profile: Profile
    tails: Tails
    chunks: ChunkScores
    noise: float
    """σ, the standard deviation of the minibatch gradient; NaN where it is not available."""
    gradient: dict[str, Tensor]
    """The full gradient by parameter, of the losses and sequences looked at (scaled up to all of them)."""
    sampling: Sampling
    lag_gradients: dict[str, Tensor] = field(default_factory=dict)
    """c_d by parameter, (D, *shape), where they were asked for."""
    notes: tuple[str, ...] = ()
    """What is not available, and why."""

    @property
    def upper_bound(self) -> bool:
        """Whether losses or sequences were sampled, so that tails and window biases are upper bounds."""
        return not self.sampling.windows_complete

    @property
    def credit(self) -> Tensor:
        """C[u, s] (T, T)."""
        return self.log_credit.exp()

    @property
    def credit_profile(self) -> Tensor:
        """(D, 6): ln of the profile and of its quantiles over outputs (5, 25, 50, 75, 95 %)."""
        return torch.cat([self.profile.log[None], self.profile.log_quantiles]).T

    @property
    def tail_norms(self) -> dict[str, Tensor]:
        """|S_d| by parameter and for `all` together, (D+1,): what a window of d steps leaves out; d = 0 is |g|."""
        return self.tails.norms

    @property
    def lag_gradient_norms(self) -> dict[str, Tensor]:
        """|c_d| by parameter and for `all` together, (D,)."""
        return self.tails.lag_norms

    @property
    def window_bias(self) -> Tensor:
        """|g_τ - g| / |g| by window τ, (D+1,)."""
        return self.tails.norms[ALL] / self.tails.norms[ALL][0]

    @property
    def window_cosine(self) -> Tensor:
        """cos(g_τ, g) by window τ, (D+1,); NaN for τ = 0."""
        return self.tails.cosine

    @property
    def window_progress(self) -> Tensor:
        """<g_τ, g> / |g|² by window τ, (D+1,)."""
        return self.tails.progress

    @property
    def tail_mean_square(self) -> Tensor:
        """Unbiased |E S_d|² over sequences, (D+1,); it may be negative."""
        return self.tails.mean_square

    @property
    def tail_mean_square_error(self) -> Tensor:
        """Standard error of `tail_mean_square`, (D+1,)."""
        return self.tails.mean_square_error

    @property
    def gradient_mean_square(self) -> float:
        """Unbiased |E g|² over sequences."""
        return float(self.tails.mean_square[0])

    @property
    def full_gradient_norm(self) -> float:
        """|g| over all parameters."""
        return float(self.tails.norms[ALL][0])


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
        return quick_sweep(chain, sampling, draw, budget, chunks, independent, adj)
    taken = sample(chain, sampling, draw)
    return sweep_chain(chain, taken, sampling, lag_gradients, chunks, independent)


def quick_sweep(
    chain: Chain,
    sampling: Sampling,
    draw: torch.Generator,
    budget: float,
    chunks: tuple[int, ...] | None,
    independent: bool,
    adj: Adjoints | None = None,
) -> LagSweep:
    """The profile from sampled losses, and some windows and chunks from the whole batch."""
    spent, most = Budget(budget), sampling.lags
    layout, whole = layout_of(chain), chain.prepared()
    population = Population(layout, chain.B, chain.B)
    delta = total_adjoint(whole) if adj is None else adj.parts
    apart = group_count(layout, chain.B, delta[0], chain.B)
    known = None if adj is None or adj.a_ih is None else adj
    by_sequence = gradient_of(whole, layout, delta, apart, adj=known)
    spent.calibrate(spent.spent, ADJOINT_SHARE if adj is None else GRADIENT_SHARE)
    full = regrouped(by_sequence, few_groups(by_sequence))
    noise = sequence_noise(whole, population, delta, by_sequence) if independent else float("nan")
    matrix, profile, sampling = sampled_credit(whole, drawn(whole, sampling, draw), sampling)
    tails, each = blocked_tails(whole, population, full, delta, most, profile, spent)
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
        notes=(*_unavailable(chain, independent), sampling.sentence),
    )


def _unavailable(chain: Chain, independent: bool) -> list[str]:
    if not independent:
        return ["The loss mixes sequences: no noise yardstick and no systematic part."]
    if chain.B < 2:
        return ["One sequence only: no noise yardstick and no systematic part."]
    return []


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
    population = Population(layout, chain.B, len(sampling.sequences))
    delta = total_adjoint(part)
    apart = group_count(layout, population.sampled, part.direct[0], population.sampled)
    by_sequence = gradient_of(part, layout, delta, apart)
    full = regrouped(by_sequence, few_groups(by_sequence))
    rows = rows_of(part)
    ledger = CreditLedger(part, rows, sampling.lags, taken.weights, not population.whole)
    tails = TailLedger(part, population, full, sampling, keep)
    mass = 0.0
    for lag in travel(part, rows, sampling.lags, tails.wants_visits):
        ledger.add(lag)
        tails.add(lag)
        if sampling.may_stop:
            now = lag.total
            mass += now
            if sampling.ends(lag.d, now, mass):
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
    notes += _unavailable(chain, independent)
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


def few_groups(by_sequence: Tensor) -> int:
    """How many groups of sequences a ledger of tails keeps apart, of the gradients (M, P)."""
    groups = len(by_sequence)
    if by_sequence.numel() * by_sequence.element_size() <= APART_BYTES:
        return groups
    return max(k for k in range(1, groups + 1) if groups % k == 0 and k <= GROUPS)


def regrouped(gradients: Tensor, groups: int) -> Tensor:
    """(M, P) -> (groups, P): sums of neighbours."""
    return gradients if len(gradients) == groups else gradients.unflatten(0, (groups, -1)).sum(1)


def exact_tails(chain: Chain, layout: Layout) -> Tails:
    """The tails of a chain as it is, every sequence, loss and lag."""
    sampling = choose(chain, chain.T, None, None, None, torch.Generator())
    population = Population(layout, chain.B, chain.B)
    full = gradient_of(chain, layout, total_adjoint(chain))
    ledger = TailLedger(chain, population, full, sampling, keep=False)
    for lag in travel(chain, rows_of(chain), chain.T, ledger.wants_visits):
        ledger.add(lag)
    return ledger.finish(False)
