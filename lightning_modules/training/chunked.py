"""Chunked truncation: the sequence in chunks of k steps, the state carried over each seam, its gradient not."""

from __future__ import annotations

from typing import Any

from lightning_modules.training.estimator import ESTIMATORS, Estimator
from rnndiag import estimators


class Chunked(Estimator):
    """A loss reaches the states of its own chunk. All chunks of a minibatch make one optimizer step."""

    def __init__(self, k: int = 20) -> None:
        self._rule = estimators.Chunk(k)

    def rule(self) -> Any:
        """Chunks of k steps."""
        return self._rule


ESTIMATORS.add("chunked", Chunked)
