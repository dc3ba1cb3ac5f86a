"""Uniform truncation point: K uniform on 1..T, source step i kept if K <= i and weighed by T/i. Unbiased."""

from __future__ import annotations

import torch
from torch import Tensor

import rnndiag
from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.training.estimator import ESTIMATORS, Estimator, step_by_step


class Uniform(Estimator):
    """One K for each minibatch. Step i's weight w_i = T/i for i >= K, else 0, is put on the adjoint of its state:
    what comes in through its output is scaled by w_i, what comes back from step i + 1 by w_i / w_{i+1}."""

    def __init__(self) -> None:
        self.point: int | None = None
        """A K to use instead of a drawn one."""

    def unroll(
        self,
        recurrence: Recurrence,
        inputs: Tensor,
        state: State | None,
        lengths: Tensor | None,
        last: bool,
    ) -> tuple[Tensor, State]:
        """Step by step, the gradients of states and outputs scaled."""
        steps = inputs.shape[0]
        point = int(torch.randint(1, steps + 1, ())) if self.point is None else self.point

        def between(t: int, state: State) -> State:
            factor = (t + 1) / t if t >= point else 0.0
            return tuple(rnndiag.scale_gradient(part, factor) for part in state)

        outputs, after = step_by_step(recurrence, inputs, state, between)
        source = torch.arange(1, steps + 1, device=inputs.device)
        weights = torch.where(source >= point, steps / source, 0.0).to(outputs.dtype)
        return rnndiag.scale_gradient(outputs, weights[:, None, None]), after


ESTIMATORS.add("uniform", Uniform)
