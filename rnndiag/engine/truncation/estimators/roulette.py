"""Russian roulette on lags: N ~ p, lag d is kept where d <= N and rescaled by 1/P(N >= d)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.estimators.estimator import Estimate, Estimator, RecordedStep, Task
from rnndiag.engine.truncation.sweep.lag_sweep import exact_tails
from rnndiag.engine.truncation.sweep.parameter_layout import ALL
from rnndiag.errors import BadArgument


@dataclass(frozen=True)
class Roulette:
    """Keeps lag d where d <= N, for a drawn number N of lags, and rescales it by 1/P(N >= d). Unbiased.

    Args:
        p: Distribution of N: 'geometric' (mean length `length`), a ratio P_{d+1}/P_d, or the probabilities of N = 0 ..
            T-1; 'optimal' minimises (variance + σ²) times expected cost on the recorded step, σ the noise yardstick.
        length: Mean of N for 'geometric'.
        name: Label in tables for given probabilities.
    """

    p: str | float | Sequence[float] = "optimal"
    length: float | None = None
    name: str = ""

    unbiased = True
    drawn = False

    def __post_init__(self) -> None:
        p = self.p
        if isinstance(p, str):
            if p not in ("optimal", "geometric"):
                raise BadArgument(
                    f"Roulette({p!r}) is not known.",
                    "Give 'optimal', 'geometric', a ratio, or the probabilities of N.",
                )
        elif isinstance(p, (int, float)):
            if not 0 < p <= 1:
                raise BadArgument(f"The ratio is {p}.", "Give a number above 0 and up to 1.")
        else:
            given = tuple(float(value) for value in p)
            if min(given) < 0 or abs(sum(given) - 1) > 1e-9:
                raise BadArgument(
                    f"The probabilities of N add up to {sum(given):g}.", "They must add up to 1."
                )
            object.__setattr__(self, "p", given)

    @property
    def label(self) -> str:
        """Text for tables."""
        if self.name:
            return self.name
        if isinstance(self.p, tuple):
            return f"roulette, {len(self.p)} given probabilities"
        return f"roulette, {self.p}" if isinstance(self.p, str) else f"roulette, ratio {self.p:g}"

    def survival(self, task: Task) -> Tensor:
        """P_d = P(N >= d) for d = 0 .. T-1, float64."""
        if self.p == "optimal":
            _, tails, _ = exact_tails(task.chain, task.layout, task.full[None], task.T)
            noise = 0.0 if math.isnan(task.noise) else task.noise
            return optimal_survival(tails.norms[ALL].square(), lag_costs(task.losses), noise)
        return self.given_survival(task.T)

    def given_survival(self, T: int) -> Tensor:
        """P_d if it does not depend on the recorded step."""
        if isinstance(self.p, tuple):
            if len(self.p) != T:
                raise BadArgument(
                    f"{len(self.p)} probabilities were given for {T} lags.", "Give one a lag."
                )
            return torch.tensor(self.p, dtype=torch.float64).flip(0).cumsum(0).flip(0)
        if self.p == "optimal":
            raise BadArgument(
                "The optimal p depends on the step at hand.",
                "Measure it first and train with its probabilities: Roulette(p=...).",
            )
        ratio = self.p
        if ratio == "geometric":
            ratio = 1 - 1 / (self.length or max(2.0, T / 4))
        return float(ratio) ** torch.arange(T, dtype=torch.float64)  # type: ignore[arg-type]

    def lag_factors(self, T: int, draw: torch.Generator | None = None) -> Tensor:
        """(N+1,): 1/P_d for the lags kept by one draw of N."""
        survival = self.given_survival(T)
        luck = float(torch.rand((), generator=draw, dtype=torch.float64))
        return 1 / survival[: max(1, int((survival > luck).sum()))]

    @staticmethod
    def recorded(step: RecordedStep) -> list[Estimator]:
        """The estimators of this kind that the callback scores."""
        return [
            Roulette("geometric", float(step.long)),
            Roulette("optimal"),
            Roulette([1 / step.T] * step.T, name="roulette, every length alike"),
        ]

    def outcomes(self, task: Task) -> Iterator[Estimate]:
        """All values of N: each adds one lag to the one before."""
        survival = self.survival(task)
        costs = lag_costs(task.losses)
        running, cost = torch.zeros_like(task.full), 0.0
        lags = iter(task.lag_gradients())
        for d in range(task.T):
            lag = next(lags, None)
            if float(survival[d]) == 0:
                return
            if lag is not None:
                running = running + lag / float(survival[d])
            cost += float(costs[d])
            stops = float(survival[d]) - (float(survival[d + 1]) if d + 1 < task.T else 0.0)
            if stops > 0:
                yield Estimate(stops, running, cost, (d + 1) / task.T)


def lag_costs(losses: Tensor) -> Tensor:
    """w_d (T,): cost of lag d in cell-steps over T, one cell-step for every loss that has a state d steps before it."""
    T = len(losses)
    steps = losses.nonzero().squeeze(1)
    return torch.tensor([float((steps >= d).sum()) / T for d in range(T)], dtype=torch.float64)


def optimal_survival(tail_squares: Tensor, costs: Tensor, noise: float) -> Tensor:
    """P_d that minimise (variance + σ²) times expected cost, P_0 = 1, never rising.

    With v_d = |S_d|² - |S_{d+1}|² (v_0 = σ² - |S_1|²) and w_d the cost of lag d: adjacent violators of v_d / w_d are
    pooled before the root is taken, since a v_d can be negative; P_d = sqrt(pooled_d / pooled_0).
    """
    count = len(costs)
    squares = tail_squares.double().tolist()
    squares += [0.0] * (count + 1 - len(squares))
    value = [squares[d] - squares[d + 1] for d in range(count)]
    value[0] = noise**2 - squares[1]
    blocks: list[tuple[float, float, int]] = []
    for v, w in zip(value, costs.tolist(), strict=True):
        blocks.append((v, w, 1))
        while len(blocks) > 1 and _rises(blocks[-2], blocks[-1]):
            (v1, w1, n1), (v2, w2, n2) = blocks[-2:]
            blocks[-2:] = [(v1 + v2, w1 + w2, n1 + n2)]
    first = blocks[0]
    if first[0] <= 0 or first[1] <= 0:
        return torch.ones(count, dtype=torch.float64)
    base = first[0] / first[1]
    levels = [
        (max(v, 0.0) / w / base) ** 0.5 if w > 0 else 0.0 for v, w, n in blocks for _ in range(n)
    ]
    return torch.tensor(levels, dtype=torch.float64).clamp(max=1.0)


def _rises(one: tuple[float, float, int], two: tuple[float, float, int]) -> bool:
    """Whether v/w of the second block is at least that of the first; a block with w = 0 costs nothing."""
    return two[0] * one[1] >= one[0] * two[1]
