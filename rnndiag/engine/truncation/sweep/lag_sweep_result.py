"""Result of a lag sweep."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rnndiag.engine.truncation.sweep.chunk_scores import ChunkScores
from rnndiag.engine.truncation.sweep.credit import Profile
from rnndiag.engine.truncation.sweep.parameter_layout import ALL
from rnndiag.engine.truncation.sweep.sampling import Sampling
from rnndiag.engine.truncation.sweep.tails import Tails


@dataclass(frozen=True)
class LagSweep:
    """Result of a lag sweep, by lag d = 0 .. D-1 and by window τ = 0 .. D; NaN where something was not measured.

    Where a sampled profile stopped early its D is smaller than that of the windows, which extend to the lags requested.
    """

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
    """The full gradient by parameter, of all losses."""
    sampling: Sampling
    lag_gradients: dict[str, Tensor] = field(default_factory=dict)
    """c_d by parameter, (D, *shape), if they were kept."""
    loss_weights: Tensor | None = None
    """(T,): number of output steps that each followed one represents, 0 for the others; None: all were followed."""
    notes: tuple[str, ...] = ()
    """What is not available and why, and what was sampled."""

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
        """|S_d| by parameter and for `all`, (D+1,): what a window of d steps leaves out; d = 0 is |g|."""
        return self.tails.norms

    @property
    def lag_gradient_norms(self) -> dict[str, Tensor]:
        """|c_d| by parameter and for `all`, (D,)."""
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
        """Unbiased estimate of |E S_d|², S_d the tail's gradient of one sequence, (D+1,); may be negative."""
        return self.tails.mean_square

    @property
    def tail_mean_square_error(self) -> Tensor:
        """Standard error of `tail_mean_square`, (D+1,)."""
        return self.tails.mean_square_error

    @property
    def sequence_squares(self) -> Tensor:
        """|S_d,m|² of every group m of sequences, (D+1, M); one sequence per group if memory allows."""
        return self.tails.own

    @property
    def sequence_products(self) -> Tensor:
        """<S_d,m, S_d> of every group m of sequences with the whole tail, (D+1, M)."""
        return self.tails.with_total

    @property
    def gradient_mean_square(self) -> float:
        """Unbiased |E g|² over sequences."""
        return float(self.tails.mean_square[0])

    @property
    def full_gradient_norm(self) -> float:
        """|g| over all parameters."""
        return float(self.tails.norms[ALL][0])
