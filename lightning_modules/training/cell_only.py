"""The original LSTM rule of 1997: back in time through the cell c alone, not through h. Not the exact gradient."""

from __future__ import annotations

from typing import Any

from lightning_modules.training.estimator import ESTIMATORS, Estimator
from rnndiag import estimators


class CellOnly(Estimator):
    """h is detached between the steps."""

    def rule(self) -> Any:
        """For recurrences with a part "c"."""
        return estimators.CellOnly()


ESTIMATORS.add("cell_only", CellOnly)
