"""Keeps whole sequences that `rnndiag.train.unroll` runs with an estimator's gradient, in a recorded step.

The estimator cuts the program's graph, so capturing its calls would show the pieces. Instead the whole sequence is
rerun on a copy of the module with the gradient of its outputs: the measures then show the full gradient, and what the
estimator leaves out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import unserializable_hook

from rnndiag.engine.truncation.estimators.estimator import Estimator
from rnndiag.recorder.capture import BackwardPass, Capture
from rnndiag.recorder.replay.kept_call import (
    KeptCall,
    autocast_of,
    mapped,
    near,
    run_again,
    tensors_in,
    versions_of,
)

RunWhole = Callable[..., tuple[Any, Any]]
"""(module, inputs, state) -> (outputs, final state), with the full gradient."""

_OTHER = (
    "the sequence does not come out the same when it is run again (inputs written to, or dropout drawn by pieces), "
    "so what the estimator throws away is not known"
)

_BETWEEN = (
    "the loop is trained with {0} and recorded with its gradient, as the program runs it: only the program can run "
    "its steps again, so what {0} throws away is not known"
)

_KEEPING = "keeping an unrolled sequence"

_active: dict[int, UnrolledCalls] = {}
"""By id, as they compare by content; in the order in which they began."""


@dataclass
class _Kept:
    """One sequence: its call, the estimator, and what the call returned."""

    call: KeptCall
    estimator: Estimator
    outputs: Tensor
    valid: Tensor | None
    """Mask over the first two dims of the outputs, True within sequences; None: everywhere."""

    def equals(self, outputs: Tensor) -> bool:
        """Whether the rerun outputs equal the stored ones."""
        if self.valid is None:
            return near(self.outputs, outputs)
        return near(self.outputs[self.valid], outputs[self.valid])


@dataclass
class UnrolledCalls:
    """Keeps the sequences of the watched modules while the capture is armed."""

    capture: Capture
    _kept: list[_Kept] = field(default_factory=list)
    _between: str = ""
    """Label of an estimator that acts between the steps of the program's own loop."""

    def start(self) -> None:
        """Start keeping sequences run by `unroll`."""
        self.forget()
        _active[id(self)] = self

    def stop(self) -> None:
        """Stop keeping sequences."""
        _active.pop(id(self), None)

    def forget(self) -> None:
        """Drop what was kept."""
        self._kept.clear()
        self._between = ""

    def name_of(self, module: object) -> str | None:
        """The module's name in the watched model; None: it is not watched."""
        watched = self.capture.modules.items()
        return next((name for name, one in watched if one.module is module), None)

    def keep(
        self,
        name: str,
        module: nn.Module,
        given: tuple[Any, Any],
        estimator: Estimator,
        ways: tuple[Callable[[], tuple[Any, Any]], RunWhole],
        valid: Tensor | None,
    ) -> tuple[Any, Any]:
        """Run the estimator hidden from the capture, and keep the sequence.

        Args:
            name: The module's name.
            module: What is unrolled.
            given: Inputs and initial state.
            estimator: Whose gradient is trained with.
            ways: How to run it with the estimator's gradient, and whole.
            valid: Where outputs belong to a sequence.
        """
        run, run_whole = ways
        call: KeptCall | None = None
        with self.capture.faults.guard(_KEEPING):
            call = _call_of(name, module, given, run_whole)
        if call is None:
            return run()
        # not guarded: an exception of the user's sequence belongs to the user
        with self.capture.overlook(name):
            outputs, final = run()
        with self.capture.faults.guard(_KEEPING):
            # A final state may be the last output itself: a view separates the gradient it gets as a state.
            returned = outputs, mapped(final, lambda part: part.view_as(part))
            found = tensors_in(returned)
            for number, tensor in enumerate(found):
                if tensor.requires_grad:
                    # marked, as torch warns when a tensor with another hook is saved or copied
                    arrive = self.capture.guarded(partial(call.receive, number))
                    tensor.register_hook(unserializable_hook(arrive))
            self._kept.append(_Kept(call, estimator, found[0].detach(), valid))
            return returned
        return outputs, final

    def with_note(self, found: list[BackwardPass]) -> list[BackwardPass]:
        """The passes, the first one with a note on the estimator that its loop was trained with."""
        if not found or not self._between:
            return found
        why = _BETWEEN.format(self._between)
        self._between = ""
        return [replace(found[0], unseen={**found[0].unseen, "between_steps": why}), *found[1:]]

    def take(self, scale: float) -> list[BackwardPass]:
        """The backward passes of the sequences that got a gradient since the last call."""
        arrived = [kept for kept in self._kept if kept.call.gradients]
        self._kept = [kept for kept in self._kept if not kept.call.gradients]
        if not arrived:
            return []
        calls, capture = [kept.call for kept in arrived], self.capture
        passes, returned = run_again(calls, capture.faults, scale, capture.independent)
        missed = {
            kept.call.name: _OTHER
            for kept, again in zip(arrived, returned, strict=True)
            if not kept.equals(tensors_in(again)[0])
        }
        estimators = {kept.call.name: kept.estimator for kept in arrived}
        return [_with_estimators(found, estimators, missed) for found in passes]


def _call_of(name: str, module: nn.Module, given: tuple[Any, Any], run_whole: RunWhole) -> KeptCall:
    """The sequence as a call, made before it runs, with the current random state for dropout."""
    draws = torch.get_rng_state() if module.training else None
    autocast = autocast_of(tensors_in(given[0])[0])
    call = KeptCall(name, module, given, {}, draws, autocast, versions_of(given, {}))
    call.run = run_whole
    return call


def _with_estimators(
    found: BackwardPass, estimators: dict[str, Estimator], missed: dict[str, str]
) -> BackwardPass:
    """The pass with the estimator of each layer run, without sequences whose rerun gave other results."""
    owners = {run.name: _owner(run.name, estimators) for run in found.layer_runs}
    return replace(
        found,
        layer_runs=tuple(run for run in found.layer_runs if owners[run.name] not in missed),
        missed={**found.missed, **missed},
        estimators={run: estimators[owner] for run, owner in owners.items()},
    )


def _owner(run: str, names: dict[str, Estimator]) -> str:
    """The longest module name that is a prefix of the layer run's name."""
    return max((name for name in names if run.startswith(name)), key=len)


def note_between_steps(estimator: Any) -> None:
    """Note in all recorders that this step of a loop uses `between_steps` with the estimator."""
    if torch.is_grad_enabled():
        for listener in tuple(_active.values()):
            listener._between = str(getattr(estimator, "label", estimator))


def as_recorded(
    module: object,
    given: tuple[Any, Any],
    estimator: Estimator,
    run: Callable[[], tuple[Any, Any]],
    run_whole: RunWhole,
    valid: Tensor | None = None,
) -> tuple[Any, Any]:
    """Run an unrolled sequence; if a recorder watches its module, keep it whole.

    Args:
        module: nn.RNN, nn.LSTM, nn.GRU or a cell; anything else is run as it is.
        given: Inputs and initial state.
        estimator: Whose gradient `run` leaves.
        run: The sequence with that gradient.
        run_whole: (module, inputs, state): the sequence with the full gradient.
        valid: Where outputs belong to a sequence, in their first two dimensions; None: everywhere.
    """
    if not _active or not torch.is_grad_enabled():
        return run()
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return run()
    named: Sequence[tuple[UnrolledCalls, str]] = [
        (listener, name)
        for listener in tuple(_active.values())
        if (name := listener.name_of(module)) is not None
    ]
    if not named:
        return run()
    listener, name = named[-1]
    return listener.keep(name, module, given, estimator, (run, run_whole), valid)
