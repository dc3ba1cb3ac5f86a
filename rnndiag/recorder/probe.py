"""`with rnndiag.probe(model) as probe:` watches the forward and backward passes inside, in any torch code."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from torch import nn

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.proof import Proof, prove
from rnndiag.recorder.capture import BackwardPass, Capture
from rnndiag.recorder.record_passes import record_passes
from rnndiag.run.recording import Recording


class Probe:
    """What `probe` yields. Everything is made at the first look at it, after the backward pass."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._passes: list[BackwardPass] = []
        self._proofs: list[Proof] | None = None
        self._recording: Recording | None = None

    def __enter__(self) -> Probe:
        self._capture.arm()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._capture.disarm()

    @property
    def backward_passes(self) -> list[BackwardPass]:
        """One entry a backward pass, in order."""
        if not self._passes:
            self._passes = list(self._capture.take())
        return self._passes

    @property
    def layer_runs(self) -> list[LayerRun]:
        """The layer runs of all backward passes."""
        return [run for found in self.backward_passes for run in found.layer_runs]

    @property
    def proofs(self) -> list[Proof]:
        """One proof a backward pass: is what was captured right?"""
        if self._proofs is None:
            self._proofs = [
                prove(found.layer_runs, dtype=found.dtype) for found in self.backward_passes
            ]
        return self._proofs

    @property
    def recording(self) -> Recording:
        """All groups of measures of all backward passes, as the callback would store them."""
        if self._recording is None:
            self._recording = record_passes(self.backward_passes)
        return self._recording


def probe(model: nn.Module, *, loss_scale: Callable[[], float] | None = None) -> Probe:
    """Watch a model: `with probe(model) as seen: loss.backward()`, then `seen.layer_runs`."""
    capture = Capture(model) if loss_scale is None else Capture(model, loss_scale=loss_scale)
    return Probe(capture)
