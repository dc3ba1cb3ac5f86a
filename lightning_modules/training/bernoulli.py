"""Randomized truncation: each step back in time is kept with probability p and weighed by 1/p. Unbiased."""

from __future__ import annotations

import torch
from torch import Tensor

import rnndiag
from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.training.estimator import ESTIMATORS, Estimator, step_by_step
from rnndiag.errors import BadArgument


class Bernoulli(Estimator):
    """xi_t = 1/p with probability p, else 0, drawn for each minibatch or for each of its sequences."""

    def __init__(self, p: float = 0.95, per_sequence: bool = False) -> None:
        if not 0.0 < p <= 1.0:
            raise BadArgument(f"p is {p}.", "Keep a step with a probability above 0 and up to 1.")
        self.p = p
        self.per_sequence = per_sequence

    def unroll(
        self,
        recurrence: Recurrence,
        inputs: Tensor,
        state: State | None,
        lengths: Tensor | None,
        last: bool,
    ) -> tuple[Tensor, State]:
        """Step by step, the gradient of the state scaled in between."""
        steps, batch = inputs.shape[:2]
        draws = torch.rand(steps, batch if self.per_sequence else 1, device=inputs.device)
        factors = (draws < self.p).to(inputs.dtype)[..., None] / self.p

        def between(t: int, state: State) -> State:
            return tuple(rnndiag.scale_gradient(part, factors[t]) for part in state)

        return step_by_step(recurrence, inputs, state, between)


ESTIMATORS.add("bernoulli", Bernoulli)
