"""The original LSTM rule of 1997: back in time through the cell c alone, not through h. Not the exact gradient."""

from __future__ import annotations

from torch import Tensor

from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.training.estimator import ESTIMATORS, Estimator, step_by_step
from rnndiag.errors import BadArgument


class CellOnly(Estimator):
    """h is detached between the steps."""

    def unroll(
        self,
        recurrence: Recurrence,
        inputs: Tensor,
        state: State | None,
        lengths: Tensor | None,
        last: bool,
    ) -> tuple[Tensor, State]:
        """Step by step."""
        if "c" not in recurrence.parts:
            raise BadArgument(
                "The estimator 'cell_only' needs a cell state c, and this recurrence has none.",
                "Take an LSTM: lstm, peephole_lstm or coupled_lstm.",
            )

        def between(t: int, state: State) -> State:
            pairs = zip(recurrence.parts, state, strict=True)
            return tuple(part if name == "c" else part.detach() for name, part in pairs)

        return step_by_step(recurrence, inputs, state, between)


ESTIMATORS.add("cell_only", CellOnly)
