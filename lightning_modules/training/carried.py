"""A stream in chunks: every minibatch goes on where the last one stopped, its state carried, its gradient cut."""

from __future__ import annotations

from torch import Tensor

from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.training.estimator import ESTIMATORS, Estimator


class Carried(Estimator):
    """What most people mean by truncated BPTT: k is the length of a minibatch. For a task that streams."""

    def __init__(self) -> None:
        self._state: State | None = None

    def unroll(
        self,
        recurrence: Recurrence,
        inputs: Tensor,
        state: State | None,
        lengths: Tensor | None,
        last: bool,
    ) -> tuple[Tensor, State]:
        """From the state after the last minibatch."""
        before = self._state if state is None else state
        outputs, after = recurrence(inputs, before, lengths)
        self._state = tuple(part.detach() for part in after)
        return outputs, after

    def reset(self) -> None:
        """The stream begins anew."""
        self._state = None


ESTIMATORS.add("carried", Carried)
