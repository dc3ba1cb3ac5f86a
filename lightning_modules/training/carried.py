"""A stream in chunks: every minibatch goes on where the last one stopped, its state carried, its gradient cut."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.training.estimator import ESTIMATORS, Estimator
from rnndiag import estimators


class Carried(Estimator):
    """What most people mean by truncated BPTT: k is the length of a minibatch. For a task that streams."""

    def __init__(self) -> None:
        self._state: State | None = None

    def __call__(
        self,
        recurrence: Recurrence,
        inputs: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        last: bool = False,
    ) -> tuple[Tensor, State]:
        """From the state after the last minibatch."""
        before = self._state if state is None else state
        outputs, after = super().__call__(recurrence, inputs, before, lengths, last)
        self._state = tuple(part.detach() for part in after)
        return outputs, after

    def rule(self) -> Any:
        """One chunk a minibatch; like every truncation in time, not for two directions."""
        return estimators.Chunk(ENDLESS)

    def reset(self) -> None:
        """The stream begins anew."""
        self._state = None


ENDLESS = 2**31
"""A chunk size that no minibatch reaches."""

ESTIMATORS.add("carried", Carried)
