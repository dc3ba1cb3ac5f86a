"""Sliding window: each loss reaches the last `tau` states, its own included."""

from __future__ import annotations

from typing import Any

from lightning_modules.training.estimator import ESTIMATORS, Estimator
from rnndiag import estimators


class Window(Estimator):
    """All windows run side by side: `tau` times the work of full BPTT where every step has a loss."""

    def __init__(self, tau: int = 20) -> None:
        self._rule = estimators.Window(tau)

    def rule(self) -> Any:
        """A window of tau states."""
        return self._rule


ESTIMATORS.add("window", Window)
