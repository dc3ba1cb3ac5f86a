"""Full BPTT: the exact gradient."""

from __future__ import annotations

from typing import Any

from lightning_modules.training.estimator import ESTIMATORS, Estimator
from rnndiag import estimators


class Full(Estimator):
    """The whole sequence in one call."""

    def rule(self) -> Any:
        """Nothing is cut."""
        return estimators.Full()


ESTIMATORS.add("full", Full)
