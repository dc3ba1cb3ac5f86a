"""Across the seam: what chunked training with a carried, detached state throws away.

The inputs and states of earlier chunks are kept, up to a bound, and the losses of the chunk at hand are followed back
through them as if nothing had been detached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.chains.joined_chunks import joined_chunks
from rnndiag.engine.truncation.chains.stack import Runs
from rnndiag.engine.truncation.sweep.credit import lag_count
from rnndiag.engine.truncation.sweep.groups import GROUPS, group_count
from rnndiag.engine.truncation.sweep.lag_sweep import SEED, sweep_chain
from rnndiag.engine.truncation.sweep.lag_sweep_result import LagSweep
from rnndiag.engine.truncation.sweep.parameter_layout import ALL, layout_of
from rnndiag.engine.truncation.sweep.sampling import Sampled, Sampling, choose, sample
from rnndiag.engine.truncation.sweep.sequence_statistics import SequenceStatistics
from rnndiag.engine.truncation.sweep.truncated_adjoints import gradient_of, total_adjoint


@dataclass(frozen=True)
class Seam:
    """What lies beyond the start of a chunk, for the losses of that chunk."""

    name: str
    own_steps: int
    """Steps of the chunk at hand, through which the training step carries its gradient."""
    kept_steps: int
    """Steps of earlier chunks that were kept."""
    sweep: LagSweep
    """All windows over own and kept steps, for the losses of the chunk: what a longer window would have given."""
    credit_beyond: float
    """Share of all credit, Σ C[u, s] over the chunk's losses, that lies at states before the seam."""
    gradient_beyond: float
    """|g_beyond| / |g|: g_beyond is what the states before the seam add to the gradient g of the chunk's losses."""
    cosine: float
    """cos between the gradient with and without what lies beyond the seam."""
    mean_square: float = math.nan
    """Unbiased |E g_beyond|² over sequences; it may be negative."""
    mean_square_error: float = math.nan
    """Its standard error."""
    gradient_mean_square: float = math.nan
    """Unbiased |E g|² over sequences."""
    gradient_mean_square_error: float = math.nan
    """Its standard error."""
    notes: tuple[str, ...] = ()

    @property
    def log_profile(self) -> Tensor:
        """ln of the credit profile over lag, own steps and kept ones, (D,)."""
        return self.sweep.profile.log

    @property
    def sentence(self) -> str:
        """What the seam costs, in words."""
        lost, off = 100 * self.credit_beyond, 100 * self.gradient_beyond
        return (
            f"Cutting the state every {self.own_steps} steps throws away {lost:.0f} % of the credit and changes the "
            f"gradient by {off:.0f} % (cosine {self.cosine:.3f}), as far as the {self.kept_steps} steps kept before "
            "the seam tell."
        )


@torch.inference_mode(False)
@torch.no_grad()
def seam_sweep(
    earlier: Sequence[Runs],
    layer_run: Runs,
    max_lag: int | None = None,
    *,
    budget: float | None = None,
    samples: int | None = None,
    independent: bool = True,
    generator: torch.Generator | None = None,
) -> Seam:
    """Follow the losses of one chunk back into the chunks before it, oldest first.

    Give layer runs, or for a stack the runs of each chunk, lowest first. Each chunk must start from the state that
    the one before it ended with.

    budget: what it may cost, in plain training steps over own and kept steps. Sequences, losses and windows are sampled
        to keep it, `sweep.sampling.sentence` says how much. None: nothing is sampled.
    samples: how many sequences to look at, at most.
    independent: whether the loss is a sum over sequences; if not, the systematic part is not available.
    """
    chain, kept, notes = joined_chunks(earlier, layer_run)
    draw = generator or torch.Generator().manual_seed(SEED)
    sampling = choose(chain, lag_count(chain, max_lag), budget, samples, None, draw)
    taken = sample(chain, sampling, draw)
    sweep = sweep_chain(chain, taken, sampling, False, (), independent)
    full, cut, population = _with_and_without(chain, sampling, kept)
    whole, inside = full.sum(0), cut.sum(0)
    beyond = population.square(full - cut, whole - inside)
    size = population.square(full, whole)
    inner, own = (population.inner(inside, other)[ALL] for other in (whole, inside))
    return Seam(
        name=chain.name,
        own_steps=chain.T - kept,
        kept_steps=kept,
        sweep=sweep,
        credit_beyond=_credit_beyond(sweep, taken, kept),
        gradient_beyond=_ratio(beyond.minibatch[ALL], size.minibatch[ALL]) ** 0.5,
        cosine=_ratio(inner, (own * size.minibatch[ALL]) ** 0.5),
        mean_square=beyond.mean if independent else math.nan,
        mean_square_error=beyond.mean_error if independent else math.nan,
        gradient_mean_square=size.mean if independent else math.nan,
        gradient_mean_square_error=size.mean_error if independent else math.nan,
        notes=notes,
    )


def _with_and_without(
    chain: Chain, sampling: Sampling, kept: int
) -> tuple[Tensor, Tensor, SequenceStatistics]:
    """The gradient of all losses of the sampled sequences (M, P), from all steps and from those after the seam."""
    part = chain
    if sampling.sequences != tuple(range(chain.B)):
        part = chain.select(sampling.sequences)
    part, layout = part.prepared(), layout_of(chain)
    delta = total_adjoint(part)
    most = GROUPS if sampling.may_stop else part.B
    groups = group_count(layout, part.B, part.direct[0], most)
    after = (torch.arange(chain.T, device=delta[0].device) >= kept).to(delta[0].dtype)
    full = gradient_of(part, layout, delta, groups)
    cut = gradient_of(part, layout, delta, groups, after)
    return full, cut, SequenceStatistics(layout, chain.B, part.B)


def _credit_beyond(sweep: LagSweep, taken: Sampled, kept: int) -> float:
    """Of the losses looked at, each standing for as many as it was drawn from; lags left out count as nothing."""
    credit = sweep.credit.nan_to_num(0.0)
    if taken.weights is not None:
        credit = credit * taken.weights[:, None].to(credit)
    return _ratio(float(credit[:, :kept].sum()), float(credit.sum()))


def _ratio(over: float, under: float) -> float:
    return over / under if under else math.nan
