"""The seam of chunked training: what a carried, detached state leaves out of the gradient.

The inputs and states of earlier chunks are kept, up to a limit, and the losses of the current chunk are followed back
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
from rnndiag.engine.truncation.sweep.lag_sweep import (
    SEED,
    drawn_sequences,
    sweep_chain,
)
from rnndiag.engine.truncation.sweep.lag_sweep_result import LagSweep
from rnndiag.engine.truncation.sweep.parameter_layout import (
    ALL,
    ParameterLayout,
    layout_of,
)
from rnndiag.engine.truncation.sweep.sampling import choose
from rnndiag.engine.truncation.sweep.sequence_statistics import (
    group_count,
    inner_products,
    moments,
)
from rnndiag.engine.truncation.sweep.truncated_adjoints import gradient_of, total_adjoint


@dataclass(frozen=True)
class Seam:
    """What the losses of one chunk lose by detaching the state at the start of the chunk."""

    name: str
    own_steps: int
    """Steps of the chunk, through which the training step carries its gradient."""
    kept_steps: int
    """Steps of earlier chunks that were kept."""
    sweep: LagSweep
    """All windows over own and kept steps, for the losses of the chunk."""
    credit_beyond: float
    """Share of all credit, Σ C[u, s] over the chunk's losses, that lies at states before the seam."""
    gradient_beyond: float
    """|g_beyond| / |g|: g_beyond is the part of the gradient g of the chunk's losses from states before the seam."""
    cosine: float
    """cos between the gradient with and without the part from before the seam."""
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
        """ln of the credit profile over lag, across own and kept steps, (D,)."""
        return self.sweep.profile.log

    @property
    def sentence(self) -> str:
        """The cost of the seam, in words."""
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
    independent: bool | None = None,
    generator: torch.Generator | None = None,
) -> Seam:
    """What chunked training with a carried, detached state leaves out: a lag sweep through the chunks before the seam.

    Args:
        earlier: The layer runs of the chunks before, oldest first; of a stack, the runs of each chunk, lowest first.
            Each chunk must start from the state that the one before it ended with.
        layer_run: The layer run, or the runs of a stack, whose losses are followed.
        max_lag: Number of lags. Default: the steps of all chunks together.
        budget: Cost limit in plain training steps over all chunks, as for `lag_sweep`. None: exact.
        samples: Sweep at most this many sequences, drawn at random. All results are theirs.
        independent: Whether the loss is a sum over sequences; if not, the systematic part is NaN. None: as the
            runs say.
        generator: Source of the random draws. Default: a fixed seed.

    Returns:
        Credit and gradient that lie before the seam, and the sweep over all chunks.

    Raises:
        BadArgument: No earlier chunk was given.
        NotSupported: A chunk does not start from the state that the one before it ended with.

    Example:
        >>> rnndiag.seam_sweep([earlier_chunk], layer_run).own_steps
        12
    """
    chain, kept, notes = joined_chunks(earlier, layer_run)
    draw = generator or torch.Generator().manual_seed(SEED)
    batch = chain.B
    if samples is not None:
        chain = chain.select(drawn_sequences(batch, samples, draw))
    chain = chain.prepared()
    independent = chain.independent if independent is None else independent
    sampling = choose(chain, lag_count(chain, max_lag), budget, of_sequences=batch)
    sweep = sweep_chain(chain, sampling, draw, budget=budget, chunks=(), independent=independent)
    layout, full, cut = _with_and_without(chain, kept)
    whole, inside = full.sum(0), cut.sum(0)
    beyond = moments(layout, full - cut, whole - inside)
    size = moments(layout, full, whole)
    inner, own = (inner_products(layout, inside, other)[ALL] for other in (whole, inside))
    return Seam(
        name=chain.name,
        own_steps=chain.T - kept,
        kept_steps=kept,
        sweep=sweep,
        credit_beyond=_credit_beyond(sweep, kept),
        gradient_beyond=_ratio(beyond.minibatch[ALL], size.minibatch[ALL]) ** 0.5,
        cosine=_ratio(inner, (own * size.minibatch[ALL]) ** 0.5),
        mean_square=beyond.mean if independent else math.nan,
        mean_square_error=beyond.mean_error if independent else math.nan,
        gradient_mean_square=size.mean if independent else math.nan,
        gradient_mean_square_error=size.mean_error if independent else math.nan,
        notes=notes,
    )


def _with_and_without(chain: Chain, kept: int) -> tuple[ParameterLayout, Tensor, Tensor]:
    """The gradient by group of sequences (M, P) over all steps, and over the steps after the seam."""
    layout, delta = layout_of(chain), total_adjoint(chain)
    groups = group_count(layout, chain.B, delta[0])
    after_seam = (torch.arange(chain.T, device=delta[0].device) >= kept).to(delta[0].dtype)
    full = gradient_of(chain, layout, delta, groups)
    return layout, full, gradient_of(chain, layout, delta, groups, after_seam)


def _credit_beyond(sweep: LagSweep, kept: int) -> float:
    """Share of the credit before the seam, for the followed losses; unmeasured lags count as zero."""
    credit = sweep.credit.nan_to_num(0.0)
    if sweep.loss_weights is not None:
        credit = credit * sweep.loss_weights[:, None].to(credit)
    return _ratio(float(credit[:, :kept].sum()), float(credit.sum()))


def _ratio(over: float, under: float) -> float:
    return over / under if under else math.nan
