"""Sliding window: each loss reaches the last `tau` states, its own included."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.training.estimator import ESTIMATORS, Estimator, at_least_one


class Window(Estimator):
    """Every step's window is run again from the detached state before it, all windows side by side on the batch
    axis: `tau` times the work of full BPTT where every step has a loss."""

    def __init__(self, tau: int = 20) -> None:
        self.tau = at_least_one("tau", tau)

    def unroll(
        self,
        recurrence: Recurrence,
        inputs: Tensor,
        state: State | None,
        lengths: Tensor | None,
        last: bool,
    ) -> tuple[Tensor, State]:
        """The first tau outputs reach back to the start anyway; the others come from a window each."""
        tau, steps = self.tau, inputs.shape[0]
        if steps <= tau:
            outputs: tuple[Tensor, State] = recurrence(inputs, state)
            return outputs
        if last and lengths is None:
            with torch.no_grad():
                early, before = recurrence(inputs[:-tau], state)
            late, after = recurrence(inputs[-tau:], before)
            return torch.cat([early, late]), after
        head, _ = recurrence(inputs[:tau], state)
        befores, after = _states(recurrence, inputs, state, steps - tau)
        windows = inputs[1:].unfold(0, tau, 1)
        stacked = windows.permute(3, 0, 1, 2).flatten(1, 2)
        tails, _ = recurrence(stacked, befores)
        tail = tails[-1].unflatten(0, (steps - tau, inputs.shape[1]))
        return torch.cat([head, tail]), after


@torch.no_grad()
def _states(
    recurrence: Recurrence, inputs: Tensor, state: State | None, count: int
) -> tuple[State, State]:
    """The states after steps 1..count side by side on the batch axis, and the state after the last step."""
    states: list[State] = []
    for step in inputs.split(1):
        _, state = recurrence(step, state)
        states.append(state)
    dim = recurrence.batch_dim
    kept = zip(*states[:count], strict=True)
    return tuple(torch.cat(part, dim) for part in kept), states[-1]


ESTIMATORS.add("window", Window)
