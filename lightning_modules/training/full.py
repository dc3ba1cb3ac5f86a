"""Full BPTT: the exact gradient."""

from __future__ import annotations

from torch import Tensor

from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.training.estimator import ESTIMATORS, Estimator


class Full(Estimator):
    """The whole sequence in one call."""

    piecewise = False

    def unroll(
        self,
        recurrence: Recurrence,
        inputs: Tensor,
        state: State | None,
        lengths: Tensor | None,
        last: bool,
    ) -> tuple[Tensor, State]:
        """The recurrence itself."""
        outputs: tuple[Tensor, State] = recurrence(inputs, state, lengths)
        return outputs


ESTIMATORS.add("full", Full)
