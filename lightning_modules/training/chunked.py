"""Chunked truncation: the sequence in chunks of k steps, the state carried over each seam, its gradient not."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.training.estimator import ESTIMATORS, Estimator, at_least_one


class Chunked(Estimator):
    """A loss reaches the states of its own chunk. All chunks of a minibatch make one optimizer step."""

    def __init__(self, k: int = 20) -> None:
        self.k = at_least_one("k", k)

    def unroll(
        self,
        recurrence: Recurrence,
        inputs: Tensor,
        state: State | None,
        lengths: Tensor | None,
        last: bool,
    ) -> tuple[Tensor, State]:
        """Chunk by chunk, detached at the seams."""
        outputs: list[Tensor] = []
        for chunk in inputs.split(self.k):
            before = None if state is None else tuple(part.detach() for part in state)
            output, state = recurrence(chunk, before)
            outputs.append(output)
        assert state is not None
        return torch.cat(outputs), state


ESTIMATORS.add("chunked", Chunked)
