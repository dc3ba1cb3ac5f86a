"""Memory of the layer runs of the last chunks of one layer."""

from __future__ import annotations

from collections import deque

from rnndiag.engine.layer_run import LayerRun
from rnndiag.errors import require_whole


def without_gradients(run: LayerRun) -> LayerRun:
    """The run without the gradients, which a seam sweep does not need of earlier chunks."""
    return LayerRun(
        name=run.name,
        cell=run.cell,
        weights=run.weights,
        inputs=run.inputs,
        states=run.states,
        initial=run.initial,
        direct=run.direct,
        lengths=run.lengths,
        reverse=run.reverse,
        tie=run.tie,
    )


class SeamMemory:
    """Keeps the layer runs of the last chunks of one layer, at most `max_steps` steps of them."""

    def __init__(self, max_steps: int) -> None:
        require_whole("max_steps", max_steps, "Keep 1 step or more.")
        self.max_steps = max_steps
        self._chunks: deque[LayerRun] = deque()

    @property
    def chunks(self) -> tuple[LayerRun, ...]:
        """The kept chunks, oldest first."""
        return tuple(self._chunks)

    def keep(self, run: LayerRun) -> None:
        """Add a chunk; the oldest whole chunks are dropped beyond `max_steps`."""
        self._chunks.append(without_gradients(run))
        while len(self._chunks) > 1 and sum(chunk.T for chunk in self._chunks) > self.max_steps:
            self._chunks.popleft()

    def clear(self) -> None:
        """Drop all chunks: a new sequence begins."""
        self._chunks.clear()
