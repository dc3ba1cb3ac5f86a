"""What a training estimator is: a way to unroll a recurrence whose forward pass is always the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.registry import Registry
from rnndiag.errors import BadArgument


class Estimator(ABC):
    """Outputs and states are those of full BPTT; only the way back differs."""

    piecewise: bool = True
    """Whether the sequence is run in pieces, so that every output must depend on the past alone."""

    def __call__(
        self,
        recurrence: Recurrence,
        inputs: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        last: bool = False,
    ) -> tuple[Tensor, State]:
        """Inputs (T, B, I) to outputs (T, B, F) and the state after the last step.

        last: only the last output of each sequence has a loss; an estimator may use that to save work.
        """
        if self.piecewise and not recurrence.causal:
            raise BadArgument(
                f"The estimator {type(self).__name__} cuts the sequence in time, and this recurrence "
                "runs through it in both directions.",
                "Take the estimator 'full', or a recurrence in one direction.",
            )
        return self.unroll(recurrence, inputs, state, lengths, last)

    @abstractmethod
    def unroll(
        self,
        recurrence: Recurrence,
        inputs: Tensor,
        state: State | None,
        lengths: Tensor | None,
        last: bool,
    ) -> tuple[Tensor, State]:
        """See `__call__`."""

    def reset(self) -> None:  # noqa: B027  (most estimators keep nothing)
        """A new pass over the data begins."""


ESTIMATORS: Registry[Callable[..., Estimator]] = Registry("estimator", "lightning_modules.training")


def step_by_step(
    recurrence: Recurrence,
    inputs: Tensor,
    state: State | None,
    between: Callable[[int, State], State],
) -> tuple[Tensor, State]:
    """One step at a time; `between(t, state)` may change what goes back from step t + 1 to the state after step t
    (t = 1..T-1 as in the sums over time). Steps beyond a sequence's length are made and never looked at."""
    outputs: list[Tensor] = []
    for t, step in enumerate(inputs.split(1), start=1):
        output, state = recurrence(step, state)
        outputs.append(output)
        if t < inputs.shape[0]:
            state = between(t, state)
    assert state is not None
    return torch.cat(outputs), state


def at_least_one(name: str, value: int) -> int:
    """Refuse a truncation that leaves nothing."""
    if value < 1:
        raise BadArgument(f"{name} is {value}.", "A truncation keeps at least 1 step.")
    return value
