"""One look: the tails that truncation windows leave out in one step, from which an auto window learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnndiag.errors import BadArgument
from rnndiag.train.bias_bound import Array, Sums

FEWEST = 16
"""Least number of independent sequences in a look."""


@dataclass(frozen=True)
class Look:
    """Squares of the tails of one step by window, in units of the step's own noise w = 1 / sum_b |g_b|^2.

    Place 0 of every array is window 0, whose tail is the whole gradient g; place k is `windows[k]`. NaN: not measured.
    """

    windows: tuple[int, ...]
    mean_square: Array
    """w |E S|^2, unbiased over pairs of sequences; it may be negative."""
    variance: Array
    """Jackknife variance of `mean_square` over sequences."""
    covariance: Array
    """Jackknife covariance of `mean_square` with that at place 0."""
    energy: Array
    """w sum_b |S_b|^2."""
    energy_squared: Array
    """w^2 sum_b |S_b|^4."""
    noise: float
    """w sigma^2, with sigma the standard deviation of the batch's gradient."""
    sequences: int

    @classmethod
    def of_shares(
        cls, windows: Sequence[int], own: Tensor | Array, reach: Tensor | Array
    ) -> Look | None:
        """A look from inner products over sequences.

        Args:
            windows: 0 first, then the windows.
            own: |S_b|^2 of every window and sequence, (windows, B).
            reach: <S_b, S> with S = sum_b S_b, (windows, B).

        Returns:
            None where the gradient is zero.
        """
        own, reach = (np.asarray(torch.as_tensor(one).double().cpu()) for one in (own, reach))
        B = own.shape[1]
        if windows[0] != 0 or len(windows) != len(own):
            raise BadArgument(
                f"A look of the windows {tuple(windows)} came with {len(own)} rows.",
                "Begin with window 0, the whole gradient.",
            )
        if B < FEWEST:
            raise BadArgument(
                f"A look has {B} sequences.", f"Give at least {FEWEST}: fewer prove nothing."
            )
        size = float(own[0].sum())
        if not size > 0:
            return None
        w = 1.0 / size
        total = reach.sum(1)  # |S|^2
        crossed = total - own.sum(1)
        left_out = (crossed[:, None] - 2 * (reach - own)) * B * B / ((B - 1) * (B - 2))
        deviation = left_out - left_out.mean(1, keepdims=True)
        factor = (B - 1) / B * w * w
        return cls(
            tuple(windows),
            crossed * B / (B - 1) * w,
            factor * (deviation * deviation).sum(1),
            factor * (deviation * deviation[:1]).sum(1),
            own.sum(1) * w,
            ((own * w) ** 2).sum(1),
            float(B / (B - 1) * (size - total[0] / B) * w),
            B,
        )

    @classmethod
    def of_sweep(cls, sweep: Any, windows: Sequence[int]) -> Look | None:
        """A look from `rnndiag.lag_sweep`. Windows that it did not measure are NaN; its groups count as sequences."""
        own, reach = sweep.sequence_squares, sweep.sequence_products
        if own.shape[1] > 1 and math.isnan(sweep.noise):
            raise BadArgument(
                "The loss of the sweep mixes the sequences of the batch.",
                "A look needs a loss that is a sum over sequences.",
            )
        last = len(own) - 1
        places = [0, *windows]
        nan = torch.full_like(own[0], torch.nan)
        # Beyond the last lag that has any credit nothing is left out.
        pick = [
            (own[p], reach[p])
            if p <= last
            else (own[last], reach[last])
            if p > sweep.lags
            else (nan, nan)
            for p in places
        ]
        return cls.of_shares(
            places, torch.stack([one for one, _ in pick]), torch.stack([two for _, two in pick])
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for a checkpoint."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Look:
        """Inverse of `as_dict`."""
        values: dict[str, Any] = {
            name: np.asarray(value) if isinstance(value, list) else value
            for name, value in saved.items()
        }
        return cls(**{**values, "windows": tuple(saved["windows"])})


class Pool:
    """The looks of one epoch, pooled."""

    def __init__(self, floor: float, looks: Sequence[Look] = ()) -> None:
        self.floor, self.looks = floor, list(looks)

    def __len__(self) -> int:
        return len(self.looks)

    def _stack(self, name: str) -> Array:
        return np.stack([getattr(look, name) for look in self.looks])

    @property
    def sums(self) -> Sums:
        """The looks as `bias_bound.Sums`; arrays over windows."""
        N, v = self._stack("mean_square"), self._stack("variance")
        return Sums.of(N, N[:, :1], v, v[:, :1], self._stack("covariance"))

    @property
    def floors(self) -> float:
        """Sum over looks of (floor sigma)^2."""
        return self.floor**2 * sum(look.noise for look in self.looks)

    def estimate(self) -> Array:
        """Plain estimate of |E S| / |E g| by window; NaN if the gradient is not resolved."""
        N = self._stack("mean_square").sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = np.where(N[0] > 0, np.sqrt(np.maximum(N, 0.0) / N[0]), np.nan)
        return found

    def effective_sequences(self) -> Array:
        """Effective number of sequences in each tail, (sum_b |S_b|^2)^2 / sum_b |S_b|^4: small if few sequences
        dominate."""
        energy, squared = self._stack("energy"), self._stack("energy_squared")
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = energy.sum(0) ** 2 / squared.sum(0)
        return found

    def too_small_to_matter(self) -> NDArray[np.bool_]:
        """Whether tails a hundred times as large, all in one direction, would still be far below the floor."""
        batch = np.mean([look.sequences for look in self.looks])
        coherent = 100 * batch * self._stack("energy").mean(0)
        small: NDArray[np.bool_] = coherent <= 0.01 * self.floors / len(self)
        return small
