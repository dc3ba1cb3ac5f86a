"""The interface of gradient estimators: the task given to them, and the estimates that they return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.lag_cotangents import lag_cotangents, rows_of
from rnndiag.engine.truncation.sweep.parameter_layout import ParameterLayout
from rnndiag.engine.truncation.sweep.products import add_gradients, empty_buffer, right_factors
from rnndiag.engine.truncation.sweep.sequence_statistics import sequence_norms
from rnndiag.engine.truncation.sweep.truncated_adjoints import gradient_of, total_adjoint

KEPT_BYTES = 64 * 2**20
"""The gradients of all lags are kept for further estimators if they take no more than this many bytes."""


@dataclass(frozen=True)
class Estimate:
    """One possible value of an estimator."""

    probability: float
    """Probability of this outcome; for draws 1 / number of draws."""
    gradient: Tensor
    """(P,) flat gradient."""
    cost: float
    """Steps of the cheapest exact backward pass, over T."""
    memory: float
    """Longest stretch of states held, over T."""


@dataclass(frozen=True)
class Task:
    """The gradient to be estimated."""

    chain: Chain
    layout: ParameterLayout
    draws: int
    """Number of draws if an estimator cannot be enumerated."""
    generator: torch.Generator = field(compare=False)
    independent: bool = True

    @property
    def T(self) -> int:
        """Number of time steps."""
        return self.chain.T

    @cached_property
    def losses(self) -> Tensor:
        """(T,) bool: the output steps with a loss."""
        return self.chain.outputs().any(1).cpu()

    @cached_property
    def adjoint(self) -> State:
        """δ_t."""
        return total_adjoint(self.chain)

    @cached_property
    def full(self) -> Tensor:
        """g (P,)."""
        return gradient_of(self.chain, self.layout, self.adjoint)[0]

    @cached_property
    def noise(self) -> float:
        """σ; NaN where it is not available."""
        B = self.chain.B
        if B < 2 or not self.independent:
            return float("nan")
        own = sequence_norms(self.chain, self.layout, self.adjoint).double().square().sum()
        spread = float(own) - float(self.full.double().square().sum()) / B
        return float((max(spread, 0.0) * B / (B - 1)) ** 0.5)

    def lag_gradients(self) -> Iterable[Tensor]:
        """The part g_d (P,) of the gradient at each lag d = 0, 1, ..., up to the last lag that any loss reaches."""
        takes = self.T * self.layout.P * self.full.element_size()
        return self._kept_lag_gradients if takes <= KEPT_BYTES else self._each_lag_gradient()

    @cached_property
    def _kept_lag_gradients(self) -> tuple[Tensor, ...]:
        return tuple(self._each_lag_gradient())

    def _each_lag_gradient(self) -> Iterator[Tensor]:
        rights = right_factors(self.chain, self.layout)
        for lag in lag_cotangents(self.chain, rows_of(self.chain), self.T):
            buffer = empty_buffer(self.chain, self.layout, 1)
            add_gradients(buffer, rights, lag.steps_back, lag.scale)
            yield buffer[0]

    def gradient(self, cotangents: State, scale: Tensor | None = None) -> Tensor:
        """(P,) parameter gradient of summed cotangents (T, B, S_p); scale (T,): a weight per source step."""
        return gradient_of(self.chain, self.layout, cotangents, 1, scale)[0]


@dataclass(frozen=True)
class RecordedStep:
    """Properties of a recorded training step, from which the options of estimators are chosen."""

    T: int
    """Number of time steps."""
    parts: int
    """Number of parts of the state."""
    clip_norm: float
    """The norm to clip at."""

    @property
    def short(self) -> int:
        """An eighth of the steps, at least 2."""
        return max(2, self.T // 8)

    @property
    def long(self) -> int:
        """A third of the steps, at least 3."""
        return max(3, self.T // 3)

    @property
    def can_be_cut(self) -> bool:
        """Whether there are enough steps for `short` and `long` to differ from all of them."""
        return self.T > 3


class Estimator(Protocol):
    """An estimator of the full gradient."""

    @property
    def label(self) -> str:
        """Name and options, for tables."""

    @property
    def unbiased(self) -> bool:
        """Whether its mean is the full gradient, exactly."""

    @property
    def drawn(self) -> bool:
        """Whether its outcomes are draws (with standard errors), not an enumeration."""

    @staticmethod
    def recorded(step: RecordedStep) -> list[Estimator]:
        """The estimators of this kind that the callback scores; empty for none."""

    def outcomes(self, task: Task) -> Iterator[Estimate]:
        """All outcomes with their probabilities, or draws."""
