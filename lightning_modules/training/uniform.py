"""Uniform truncation point: K uniform on 1..T, source step i kept if K <= i and weighed by T/i. Unbiased."""

from __future__ import annotations

from typing import Any

from lightning_modules.training.estimator import ESTIMATORS, Estimator
from rnndiag import estimators


class Uniform(Estimator):
    """One K for each minibatch."""

    def rule(self) -> Any:
        """Drawn anew for every minibatch."""
        return estimators.Uniform()


ESTIMATORS.add("uniform", Uniform)
