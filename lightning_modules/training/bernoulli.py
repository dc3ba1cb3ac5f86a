"""Randomized truncation: each step back in time is kept with probability p and weighed by 1/p. Unbiased."""

from __future__ import annotations

from typing import Any

from lightning_modules.training.estimator import ESTIMATORS, Estimator
from rnndiag import estimators
from rnndiag.errors import BadArgument


class Bernoulli(Estimator):
    """xi_t = 1/p with probability p, else 0, drawn for each minibatch or for each of its sequences."""

    def __init__(self, p: float = 0.95, per_sequence: bool = False) -> None:
        if not 0 < p <= 1:
            raise BadArgument(f"p is {p}.", "Give a probability above 0 and up to 1.")
        self._rule = estimators.Bernoulli(p, shared=not per_sequence)

    def rule(self) -> Any:
        """Drawn anew for every minibatch."""
        return self._rule


ESTIMATORS.add("bernoulli", Bernoulli)
