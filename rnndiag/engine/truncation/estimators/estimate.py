"""Scores of estimators on a recorded step: bias, spread, direction, cost and memory against the full gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rnndiag.engine.truncation.chains.stack import Runs, chain_of
from rnndiag.engine.truncation.estimators.estimator import Estimate, Estimator, Task
from rnndiag.engine.truncation.sweep.parameter_layout import layout_of
from rnndiag.errors import require_whole

DRAWS = 64
"""Number of draws of an estimator that cannot be enumerated."""


@dataclass(frozen=True)
class Score:
    """Score of an estimator of the gradient, relative to |g|. Errors are standard errors, 0 where it is exact."""

    label: str
    bias: float
    """|E ĝ - g| / |g|."""
    sd: float
    """sqrt(E |ĝ - E ĝ|²) / |g|."""
    rmse: float
    """sqrt(E |ĝ - g|²) / |g|."""
    cosine: float
    """cos(E ĝ, g)."""
    draw_cosine: float
    """E cos(ĝ, g)."""
    cost: float
    """Expected cell-steps of the cheapest exact backward pass, over T."""
    memory: float
    """Expected longest stretch of states held, over T."""
    noise: float
    """σ / |g|, the noise yardstick; NaN where it is not available."""
    bias_error: float = 0.0
    sd_error: float = 0.0
    rmse_error: float = 0.0
    cosine_error: float = 0.0
    """Upper bound of the standard error of `cosine`: assumes that all of the mean's error is perpendicular to it."""
    draw_cosine_error: float = 0.0
    draws: int = 0
    """Number of draws; 0: exact."""
    mean: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """E ĝ by parameter."""

    @property
    def ranking(self) -> float:
        """sqrt(bias² + (sd² + σ²) * cost): lower is better. Without a noise yardstick σ counts as 0.

        Cheaper steps can be averaged over more of them, which lowers the spread but not the bias.
        """
        noise = 0.0 if math.isnan(self.noise) else self.noise
        return math.sqrt(self.bias**2 + (self.sd**2 + noise**2) * self.cost)

    @property
    def exact(self) -> bool:
        """Whether nothing was sampled."""
        return self.draws == 0


class _Sums:
    """Running sums over outcomes."""

    def __init__(self, full: Tensor, has_mean: bool) -> None:
        self.full = full.double()
        self.size = float(self.full.norm())
        self.mean = torch.zeros_like(self.full)
        self.has_mean = has_mean
        """Whether E ĝ is asked for; to add it up costs as much as all the rest."""
        self.squares: list[tuple[float, float]] = []
        self.cosines: list[tuple[float, float]] = []
        self.cost = self.memory = self.probability = 0.0

    def add(self, outcome: Estimate) -> None:
        value, p = outcome.gradient.double(), outcome.probability
        if self.has_mean:
            self.mean.add_(value, alpha=p)
        self.cosines.append((p, _cosine(value, self.full, self.size)))
        off = value.sub_(self.full) if value is not outcome.gradient else value - self.full
        self.squares.append((p, float(off @ off)))
        self.cost += p * outcome.cost
        self.memory += p * outcome.memory
        self.probability += p


def _cosine(x: Tensor, y: Tensor, y_norm: float) -> float:
    size = float(x.norm()) * y_norm
    return max(-1.0, min(1.0, float(x @ y) / size)) if size else math.nan


def _average(pairs: list[tuple[float, float]]) -> float:
    known = [(p, v) for p, v in pairs if not math.isnan(v)]
    total = sum(p for p, _ in known)
    return sum(p * v for p, v in known) / total if total else math.nan


def _standard_error(pairs: list[tuple[float, float]]) -> float:
    values = [v for _, v in pairs if not math.isnan(v)]
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    spread = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return math.sqrt(spread / len(values))


@torch.inference_mode(False)
@torch.no_grad()
def estimate(
    layer_run: Runs,
    estimator: Estimator,
    draws: int = DRAWS,
    *,
    independent: bool | None = None,
    generator: torch.Generator | None = None,
) -> Score:
    """Score one estimator of the gradient on one recorded step.

    Args:
        layer_run: A layer run, or the layer runs of a stack, lowest first.
        estimator: One of `rnndiag.estimators`, or an object with the same methods.
        draws: Number of draws of an estimator with too many outcomes to enumerate (Bernoulli masks). Its numbers then
            have standard errors.
        independent: Whether the loss is a sum over sequences; if not, there is no noise yardstick. None: as the
            layer run says.
        generator: Source of the random draws. Default: a fixed seed.

    Returns:
        Bias, spread, direction, cost and memory, relative to the full gradient.

    Raises:
        BadArgument: `draws` is less than 1.

    Example:
        >>> score = rnndiag.estimate(layer_run, rnndiag.estimators.Window(12))
        >>> score.bias, score.exact
        (0.0, True)
    """
    return score(_task(layer_run, draws, independent, generator), estimator)


@torch.no_grad()
def compare_estimators(
    layer_run: Runs,
    estimators: Sequence[Estimator],
    draws: int = DRAWS,
    *,
    independent: bool | None = None,
    generator: torch.Generator | None = None,
) -> list[Score]:
    """Score several estimators on one recorded step.

    Args:
        layer_run: A layer run, or the layer runs of a stack, lowest first.
        estimators: The estimators.
        draws: Number of draws, as for `estimate`.
        independent: Whether the loss is a sum over sequences; None: as the layer run says.
        generator: Source of the random draws. Default: a fixed seed.

    Returns:
        Their scores, the best first: by sqrt(bias² + (sd² + σ²) * cost), σ the noise of the batch's gradient.

    Example:
        >>> kinds = [rnndiag.estimators.Full(), rnndiag.estimators.Window(2), rnndiag.estimators.Uniform()]
        >>> len(rnndiag.compare_estimators(layer_run, kinds))
        3
    """
    task = _task(layer_run, draws, independent, generator)
    return sorted((score(task, one) for one in estimators), key=lambda s: s.ranking)


def _task(
    layer_run: Runs, draws: int, independent: bool | None, generator: torch.Generator | None
) -> Task:
    require_whole("draws", draws)
    chain = chain_of(layer_run).prepared()
    generator = generator or torch.Generator().manual_seed(0)
    independent = chain.independent if independent is None else independent
    return Task(chain, layout_of(chain), draws, generator, independent)


def score(task: Task, estimator: Estimator) -> Score:
    """The score of one estimator."""
    tally = _Sums(task.full, not estimator.unbiased)
    for outcome in estimator.outcomes(task):
        tally.add(outcome)
    size = tally.size if tally.size else math.nan
    second = _average(tally.squares)
    found = Score(
        label=estimator.label,
        bias=0.0,
        sd=0.0,
        rmse=math.sqrt(second) / size,
        cosine=1.0,
        draw_cosine=_average(tally.cosines),
        cost=tally.cost,
        memory=tally.memory,
        noise=task.noise / size,
    )
    if estimator.drawn:
        found = _with_errors(found, tally, estimator.unbiased)
    elif estimator.unbiased:
        found = replace(found, sd=found.rmse)
    else:
        off = float((tally.mean - tally.full).square().sum())
        found = replace(
            found,
            bias=math.sqrt(off) / size,
            sd=math.sqrt(max(second - off, 0.0)) / size,
            cosine=_cosine(tally.mean, tally.full, tally.size),
        )
    mean = task.full if estimator.unbiased else tally.mean.to(task.full.dtype)
    return replace(found, mean=task.layout.split(mean))


def _with_errors(found: Score, tally: _Sums, unbiased: bool) -> Score:
    """The score from draws: spread with its standard error, and bias with its own if the mean is unknown.

    The square of a mean over n draws contains the spread of the draws over n, which is subtracted.
    """
    draws = len(tally.squares)
    second = _average(tally.squares)
    error = _standard_error(tally.squares)
    drawn_error = _standard_error(tally.cosines)
    size, off = tally.size, 0.0
    if not unbiased and draws > 1:
        raw = float((tally.mean - tally.full).square().sum())
        off = max((raw * draws - second) / (draws - 1), 0.0)
    variance = max(second - off, 0.0)
    sd = math.sqrt(variance)
    cosine = 1.0 if unbiased else _cosine(tally.mean, tally.full, tally.size)
    bias_error = cosine_error = 0.0
    if not unbiased:
        bias_error = sd / math.sqrt(draws) / size
        turned = math.sqrt(max(1 - cosine**2, 0.0)) if not math.isnan(cosine) else math.nan
        length = float(tally.mean.norm())
        cosine_error = turned * bias_error * size / length if length else math.nan
    return replace(
        found,
        bias=math.sqrt(off) / size,
        sd=sd / size,
        cosine=cosine,
        bias_error=bias_error,
        sd_error=error / (2 * sd) / size if sd else 0.0,
        rmse_error=error / (2 * math.sqrt(second)) / size if second else 0.0,
        cosine_error=cosine_error,
        draw_cosine_error=drawn_error,
        draws=draws,
    )
