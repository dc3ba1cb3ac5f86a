"""Bernoulli randomized truncation: J_t is multiplied by 1/π_t with probability π_t, else by 0. Unbiased."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.estimators.estimator import Estimate, Estimator, RecordedStep, Task
from rnndiag.engine.truncation.sweep.truncated_adjoints import scan
from rnndiag.errors import BadArgument

DRAWS_AT_ONCE = 16
"""Number of draws that are propagated together."""


@dataclass(frozen=True)
class Artbp:
    """The schedule of Tallec & Ollivier 2017: the probability of a cut decays polynomially since the last cut.

    P(cut n steps after the last one) = (alpha - 1) / ((alpha - 2) length + n): stretches are `length` steps long on
    average, with a tail of power alpha.
    """

    length: float
    alpha: float = 4.0

    def __post_init__(self) -> None:
        if self.length <= 1 or self.alpha <= 2:
            raise BadArgument(
                f"artbp has length {self.length} and alpha {self.alpha}.",
                "The mean length must be above 1 and alpha above 2.",
            )

    def cut(self, since: Tensor) -> Tensor:
        """Probability of a cut, `since` steps after the last one (1, 2, ...)."""
        return (self.alpha - 1) / ((self.alpha - 2) * self.length + since)


def artbp(length: float, alpha: float = 4.0) -> Artbp:
    """The truncation schedule of Tallec & Ollivier 2017, for Bernoulli(artbp(length)).

    Args:
        length: Mean number of steps between two cuts, above 1.
        alpha: Power of the tail of that number, above 2.

    Returns:
        The schedule.
    """
    return Artbp(length, alpha)


@dataclass(frozen=True)
class Bernoulli:
    """Randomized truncation: J_t is multiplied by 1/π_t with probability π_t, else by 0. Unbiased.

    Args:
        keep: π for every step, a sequence π_2 .. π_T (or π_1 .. π_T, π_1 unused), or artbp(length).
        shared: Draw one mask for the whole batch; else one for every sequence.
        name: Label in tables for a given schedule.
    """

    keep: float | Sequence[float] | Artbp
    shared: bool = True
    name: str = ""

    unbiased = True
    drawn = True

    def __post_init__(self) -> None:
        if isinstance(self.keep, Artbp):
            return
        if not isinstance(self.keep, (int, float)):
            object.__setattr__(self, "keep", tuple(float(p) for p in self.keep))
        values = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        for p in values:
            if not 0 < p <= 1:
                raise BadArgument(
                    f"keep is {p}.",
                    "Give a probability above 0 and up to 1, or a sequence of them.",
                )

    @property
    def label(self) -> str:
        """Text for tables."""
        if self.name:
            return self.name
        masks = "" if self.shared else ", a mask a sequence"
        if isinstance(self.keep, Artbp):
            return f"ARTBP, mean length {self.keep.length:g}, alpha {self.keep.alpha:g}{masks}"
        if isinstance(self.keep, tuple):
            return f"Bernoulli, {len(self.keep)} given probabilities{masks}"
        return f"Bernoulli, p = {self.keep:g}{masks}"

    def probabilities(self, T: int) -> Tensor:
        """π_1 .. π_T of a constant or given schedule; π_1 = 1, since no gradient crosses before step 1."""
        assert not isinstance(self.keep, Artbp)
        first = torch.ones(1, dtype=torch.float64)
        if isinstance(self.keep, (int, float)):
            return torch.cat([first, torch.full((T - 1,), float(self.keep), dtype=torch.float64)])
        given = torch.tensor(self.keep, dtype=torch.float64)
        if len(given) not in (T - 1, T):
            raise BadArgument(
                f"{len(given)} probabilities were given for {T} steps.",
                f"Give one for each of the {T - 1} steps after the first.",
            )
        return torch.cat([first, given[len(given) - T + 1 :]])

    def state_factors(
        self, T: int, draw: torch.Generator | None = None, masks: tuple[int, ...] = ()
    ) -> Tensor:
        """ξ (T, *masks): factors on the gradient from step t to t-1; ξ_1 = 1."""
        luck = torch.rand(T, *masks, generator=draw, dtype=torch.float64)
        if not isinstance(self.keep, Artbp):
            pi = self.probabilities(T).view(T, *[1] * len(masks)).expand(T, *masks)
            return torch.where(luck < pi, 1 / pi, torch.zeros_like(pi))
        factors = torch.ones(T, *masks, dtype=torch.float64)
        since = torch.zeros(masks, dtype=torch.float64)
        for t in range(1, T):
            since = since + 1
            pi_t = 1 - self.keep.cut(since)
            kept = luck[t] < pi_t
            factors[t] = torch.where(kept, 1 / pi_t, torch.zeros_like(pi_t))
            since = torch.where(kept, since, torch.zeros_like(since))
        return factors

    @staticmethod
    def recorded(step: RecordedStep) -> list[Estimator]:
        """The estimators of this kind that the callback scores."""
        if not step.can_be_cut:
            return []
        at_seams = [0.5 if t % step.short == 0 else 1.0 for t in range(1, step.T)]
        return [
            Bernoulli(1 - 1 / step.long),
            Bernoulli(at_seams, name=f"Bernoulli, p = 0.5 every {step.short} steps"),
            Bernoulli(artbp(float(step.long))),
        ]

    def outcomes(self, task: Task) -> Iterator[Estimate]:
        """Draws, many of them propagated together."""
        left = task.draws
        while left:
            count = min(left, DRAWS_AT_ONCE)
            left -= count
            masks = (count,) if self.shared else (count, task.chain.B)
            factors = self.state_factors(task.T, task.generator, masks)
            found = scan(task.chain, factors.to(task.full.device))
            held = longest_stretch(factors) / task.T
            for k in range(count):
                gradient = task.gradient(tuple(part[:, k] for part in found))
                yield Estimate(1 / task.draws, gradient, 1.0, float(held[k].mean()))


def longest_stretch(factors: Tensor) -> Tensor:
    """(*masks): the largest number of consecutive steps without a cut (factor 0) between them."""
    run = torch.ones(factors.shape[1:], dtype=torch.float64)
    longest = run.clone()
    for row in factors[1:]:
        run = torch.where(row == 0, torch.ones_like(run), run + 1)
        longest = torch.maximum(longest, run)
    return longest
