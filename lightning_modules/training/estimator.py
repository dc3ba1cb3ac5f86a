"""A training estimator of a program: a way to unroll a recurrence whose forward pass is always the same.

The arithmetic is `rnndiag.train.unroll`; what is here gives each estimator its name and its options in a configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

import rnndiag
from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.registry import Registry


class Estimator(ABC):
    """Outputs and states are those of full BPTT; only the gradient differs."""

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
        outputs, after = rnndiag.train.unroll(
            recurrence, inputs, state, self.rule(), lengths=lengths, last_only=last
        )
        return outputs, after

    @abstractmethod
    def rule(self) -> Any:
        """The estimator of `rnndiag.estimators` for one minibatch."""

    def reset(self) -> None:  # noqa: B027  (most estimators keep nothing)
        """A new pass over the data begins."""


ESTIMATORS: Registry[Callable[..., Estimator]] = Registry("estimator", "lightning_modules.training")
