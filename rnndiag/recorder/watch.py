"""Captures the model of a fit, including layers that are added or replaced during training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import is_
from typing import Any

from rnndiag.recorder.capture import BackwardPass, Capture
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.replay.unrolled import UnrolledCalls

MAX_LAGS = 32
"""Most lags that a recorded step measures on a graph, at one backward pass of the loop each."""

_COMPARE_SEQUENCES = frozenset(("lags", "estimators"))
"""Groups of measures that take the gradients of single sequences for independent draws."""


class Watch:
    """The capture of one fit. Its hooks are on between `arm` and `disarm`; `passes` are kept until `forget`."""

    def __init__(
        self,
        model: Any,
        loss_scale: Callable[[], float],
        faults: Faults,
        steps: Sequence[str] = (),
        timer: Callable[[], AbstractContextManager[Any]] = nullcontext,
        independent: bool | None = None,
    ) -> None:
        self._timer, self._independent = timer, independent
        self._model, self._loss_scale, self._faults = model, loss_scale, faults
        self._steps = tuple(steps)
        self._capture: Capture | None = None
        self._seen: tuple[Any, ...] = ()
        self._passes: list[BackwardPass] = []
        self._unrolled: UnrolledCalls | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the recurrent modules that are watched."""
        return () if self._capture is None else tuple(self._capture.modules)

    @property
    def unseen(self) -> Mapping[str, str]:
        """What looks like a recurrence in this step but could not be followed -> why."""
        return {} if self._capture is None else self._capture.unseen

    @property
    def armed(self) -> bool:
        """Whether the hooks are on."""
        return self._capture is not None and self._capture.armed

    @property
    def incomplete(self) -> bool:
        """Whether an error ended the recording of this step."""
        return self._capture is not None and self._capture.spoilt

    def rescan(self) -> None:
        """Search recurrent modules again: they may be created late, or be replaced between epochs."""
        modules = tuple(self._model.modules())
        same = len(modules) == len(self._seen) and all(map(is_, modules, self._seen))
        if not same or self._capture is None:
            self.release()
            self._seen = modules
            self._capture = Capture(
                self._model,
                steps=self._steps,
                loss_scale=self._loss_scale,
                faults=self._faults,
                timer=self._timer,
            )
            self._unrolled = UnrolledCalls(self._capture)

    def arm(self, groups: Collection[str]) -> None:
        """Install the hooks needed by these groups of measures; drop what was kept of the previous step."""
        if self._capture is None:
            self.rescan()
        self._passes.clear()
        if self._capture is not None:
            self._capture.measure_lags = "lags" in groups
            self._capture.max_lags = MAX_LAGS
            # only these groups compare sequences: others need not know whether the loss mixes them
            compares = not _COMPARE_SEQUENCES.isdisjoint(groups)
            self._capture.independent = self._independent if compares else True
            self._capture.arm()
        if self._unrolled is not None:
            self._unrolled.start()

    def new_passes(self) -> list[BackwardPass]:
        """The backward passes since the last call, replayed."""
        if self._capture is None:
            return []
        found = list(self._capture.take())
        if self._unrolled is not None:
            with self._faults.guard("running an unrolled sequence again"):
                found = self._unrolled.with_note(found + self._unrolled.take(self._loss_scale()))
        self._passes += found
        return found

    def passes(self) -> list[BackwardPass]:
        """All backward passes kept so far."""
        self.new_passes()
        return list(self._passes)

    def forget_spent(self) -> None:
        """Drop finished passes; hooks, and calls without a backward pass yet, stay."""
        self._passes.clear()
        if self._capture is not None:
            self._capture.forget_spent()

    def disarm(self) -> None:
        """Remove the hooks and drop what is kept."""
        if self._capture is not None and self._capture.armed:
            self._passes.clear()
            self._capture.disarm()
            self._capture.forget()
        if self._unrolled is not None:
            self._unrolled.stop()
            self._unrolled.forget()

    def release(self) -> None:
        """Drop the reference to the model."""
        self.disarm()
        self._capture, self._unrolled, self._seen = None, None, ()
