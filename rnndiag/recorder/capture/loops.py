"""Sorts the loops of a backward pass into: described by the replay, measured on the graph, or open.

The replay may describe a loop whose steps pass their state on unchanged, with no other path back in time. Any other
loop is measured on the user's graph if it is closed: every path from a later loss to an earlier state goes through the
states in between. All others are open, and their reach is withdrawn with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from rnndiag.engine.segments.closure import Closure, closure_of, leaves_of_first_step
from rnndiag.engine.segments.marks import Edge, Mark, edge_of, graph_behind
from rnndiag.engine.segments.measure import LoopMeasurement, MarkedLoop, measure_loop
from rnndiag.recorder.capture.engine_entry import own_passes, run_backward
from rnndiag.recorder.capture.loop_calls import LoopCall
from rnndiag.recorder.capture.node_calls import unpacks_quietly
from rnndiag.recorder.capture.stack_replay import random_state
from rnndiag.recorder.capture.tracks import (
    Track,
    for_replay,
    groups_of,
    in_one,
    together,
    tracks_of,
)
from rnndiag.recorder.faults import describe

CARRY = "mark all that lives from step to step: `h, old, ... = rnndiag.carry(h, old, ...)` at the head of the loop"


@dataclass(frozen=True)
class Loops:
    """The loops found in one backward pass."""

    measured: tuple[LoopMeasurement, ...] = ()
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a measurement over several modules -> the names of their recurrences."""
    open: Mapping[str, str] = field(default_factory=dict)
    """Recurrence -> the path that bypasses its state."""
    calls: Mapping[int, str] = field(default_factory=dict)
    """Number of a replayed call -> its recurrence, for calls that the replay alone does not describe."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Such a recurrence -> why the replay cannot give its lags."""
    owners: frozenset[str] = frozenset()
    """Modules with calls that the replay alone does not describe."""

    def without(self, names: Set[str]) -> Loops:
        """A copy without some loops."""
        if not names:
            return self
        measured = tuple(found for found in self.measured if found.name not in names)
        is_open = {name: why for name, why in self.open.items() if name not in names}
        return replace(self, measured=measured, open=is_open)

    def withdrawn(self, why: str) -> Loops:
        """The same with everything that was measured open."""
        names = [found.name for found in self.measured]
        return replace(self, measured=(), open={**self.open, **dict.fromkeys(names, why)})

    @property
    def tells(self) -> bool:
        """Whether any loop was found that the replay alone does not describe."""
        return bool(self.measured or self.open)


def find_loops(
    calls: Sequence[LoopCall],
    roots: Sequence[Any],
    given: Sequence[Tensor | None],
    model: nn.Module,
    measure: bool = True,
    max_lags: int | None = None,
) -> tuple[Loops, list[LoopCall]]:
    """The loops that a backward pass from these roots goes through, and the calls that it reaches.

    measure: False: loops that would be measured on the graph count as open. max_lags: most lags to measure.
    """
    reached = _reached(calls, roots)
    numbers = {call.number for call in reached if call.marks}
    # of all calls: one that the loss does not depend on is a step too
    found = [t for t in tracks_of(calls) if any(call.number in numbers for call in t.calls)]
    joined = in_one(found, [edge_of(root) for root in roots])
    tracks = [track for track in joined if len(track.calls) > 1]
    if not tracks:
        return Loops(), reached
    finder = _Finder(tracks, roots, given, model, measure, max_lags)
    finder.run()
    return finder.loops(), reached


def _reached(calls: Sequence[LoopCall], roots: Sequence[Any]) -> list[LoopCall]:
    """The calls that the roots depend on; includes calls of `carry` without a mark."""
    places = {mark.place: call.number for call in calls for mark in call.marks}
    if not places:
        return []
    oldest = min(mark.number for call in calls for mark in call.marks)
    edges = [edge_of(root) for root in roots]
    found = {places[edge] for edge in edges if edge in places}
    for node in graph_behind([node for node, _ in edges], oldest):
        found.update(places[edge] for edge in node.next_functions if edge in places)
    return [call for call in calls if call.number in found or not call.marks]


class _Finder:
    """Classifies every track, and measures those that need it."""

    def __init__(
        self,
        tracks: list[Track],
        roots: Sequence[Any],
        given: Sequence[Tensor | None],
        model: nn.Module,
        measure: bool,
        max_lags: int | None,
    ) -> None:
        self.tracks, self.roots, self.given, self.measure = tracks, roots, given, measure
        self.max_lags = max_lags
        self.edges = [edge_of(root) for root in roots]
        self.names = {id(value): name for name, value in model.named_parameters()}
        self.closures: dict[int, Closure] = {}
        self.why: dict[int, str] = {}
        """Track id -> why the replay does not describe it; empty if it does."""
        self.measured: list[LoopMeasurement] = []
        self.members: dict[str, tuple[str, ...]] = {}
        self.open: dict[str, str] = {}

    def run(self) -> None:
        """Process all tracks: those of `carry` first, which may cover the modules called in their loops."""
        carried = [track for track in self.tracks if track.of_carry]
        modules = [track for track in self.tracks if not track.of_carry]
        for track in carried:
            self.closures[id(track)] = closure_of(track.marks, self.edges)
        self._close(modules)
        covered: list[Track] = []
        for group in groups_of(carried):
            covered += self._settle(group)
        for track in modules:
            closed = not self.closures[id(track)].open
            self.why[id(track)] = for_replay(track) if closed else self.closures[id(track)].open
        for group in groups_of(modules):
            rest = [track for track in group if self.why[id(track)]]
            by_carry = [t for t in rest if any(t.overlaps(other) for other in covered)]
            for track in by_carry:
                if self.closures[id(track)].open:
                    rest.remove(track)  # its loop is measured as a whole
            self._settle(group, rest)

    def _close(self, tracks: list[Track]) -> None:
        """Find the closure of each module's track; two tracks that feed each other are both open."""
        places = [frozenset(mark.place for mark in track.marks) for track in tracks]
        nothing: frozenset[Edge] = frozenset()
        takes: list[frozenset[int]] = []
        for k, track in enumerate(tracks):
            others = [nothing if j == k else own for j, own in enumerate(places)]
            found = closure_of(track.marks, self.edges, others)
            self.closures[id(track)] = found
            takes.append(found.takes_from)
        for k, track in enumerate(tracks):
            both = [tracks[j].name for j in takes[k] if k in takes[j]]
            if both and not self.closures[id(track)].open:
                why = f"it and {', '.join(both)} feed each other"
                self.closures[id(track)] = replace(self.closures[id(track)], open=why)

    def _settle(self, group: list[Track], rest: list[Track] | None = None) -> list[Track]:
        """Measure the group as one state (detaching at a step cuts all of it); if that fails, its tracks one by
        one.

        Returns the tracks that were measured.
        """
        rest = group if rest is None else rest
        if not rest:
            return []
        if len(group) == 1:
            (track,) = group
            fault = self._fault_of(track)
            if fault:
                self.open[track.name] = f"{fault}: {CARRY}"
                return []
            return group if self._measure(track.name, track.marks, self._of(track), group) else []
        names = tuple(track.name for track in group)
        joint = together(group)
        fault = next((track.fault for track in group if track.fault), "")
        fault = fault or f"it alternates with {', '.join(names)} in no fixed order"
        if joint is not None:
            closure = closure_of(joint, self.edges)
            fault = closure.open
            if not fault and self._measure("+".join(names), joint, closure, group):
                self.members["+".join(names)] = names
                return group
            fault = fault or self.open.pop("+".join(names), "")
        for track in rest:
            self.open[track.name] = f"{fault}: {CARRY}"
        return []

    def _of(self, track: Track) -> Closure:
        return self.closures[id(track)]

    def _fault_of(self, track: Track) -> str:
        if track.fault:
            return track.fault
        if any(call.steps != 1 for call in track.calls):
            return self.why.get(id(track), "") or "its calls span several steps each"
        return self.closures[id(track)].open

    def _measure(
        self, name: str, marks: Sequence[Mark], closure: Closure, tracks: Sequence[Track]
    ) -> bool:
        if not self.measure:
            self.open[name] = "its lags were not asked for"
            return False
        ahead = tracks[0].of_carry and _stands_ahead(tracks[0], closure)
        if ahead is None:
            self.open[name] = _WHERE
            return False
        coarse = any(call.autocast for track in tracks for call in track.calls)
        parameters = self._parameters(closure, tracks)
        around = [closure.leaves_around.get(id(value), "") for value in parameters.values()]
        fault = next(filter(None, around), "") or unpacking_fault(marks)
        if fault:
            self.open[name] = fault
            return False
        hooks = any(call.has_hooks for track in self.tracks for call in track.calls)
        loop = MarkedLoop(name, tuple(marks), parameters, closure.within, coarse, hooks, ahead)
        try:
            with own_passes(), _kept_gradients(tracks), random_state(None, marks[0].root.device):
                try:
                    result = self._run(loop)
                except (AttributeError, TypeError):
                    # a user's hook between two states may not accept None as gradient: give it zeros
                    result = self._run(replace(loop, hooks=True))
        except Exception as error:  # noqa: BLE001 - whatever a hook raises, the loop is not measured
            self.open[name] = f"measuring it on the graph failed ({describe(error)})"
            return False
        fault = _disproved(result)
        if fault:
            self.open[name] = fault
            return False
        self.measured.append(result)
        return True

    def _run(self, loop: MarkedLoop) -> LoopMeasurement:
        return measure_loop(loop, self.roots, self.given, run_backward, self.max_lags)

    def _parameters(self, closure: Closure, tracks: Sequence[Track]) -> dict[str, Tensor]:
        """The modules' own parameters; for `carry`, all parameters used by the steps of the loop."""
        own: dict[str, Tensor] = {}
        for track in tracks:
            module = track.calls[0].module
            if module is None:
                continue
            for key, value in module.named_parameters():
                name = key if len(tracks) == 1 else f"{track.owner}.{key}"
                own[name] = value
        used = {id(leaf) for leaf in closure.leaves}
        found = {name: value for name, value in own.items() if id(value) in used}
        if found:
            return found
        return {
            self.names.get(id(leaf), f"tensor {k}"): leaf
            for k, leaf in enumerate(closure.leaves)
            if id(leaf) in self.names or not self.names.keys() & used
        }

    def loops(self) -> Loops:
        """The result."""
        calls: dict[int, str] = {}
        reasons: dict[str, str] = {}
        for track in self.tracks:
            if track.of_carry or not self.why.get(id(track)):
                continue
            reasons[track.name] = self.open.get(track.name) or self.why[id(track)]
            calls |= {call.record.number: track.name for call in track.calls if call.record}
        owners = frozenset(track.owner for track in self.tracks if track.name in reasons)
        return Loops(tuple(self.measured), self.members, self.open, calls, reasons, owners)


_WHERE = (
    "its graph does not show whether carry stands before or behind a step: mark the state at the head of the loop, "
    "before its first step too"
)


def unpacking_fault(marks: Sequence[Mark]) -> str:
    """Why the graph cannot be walked again: saved tensors have unpack hooks (a checkpoint reruns its forward); else
    empty."""
    oldest = min(mark.number for mark in marks)
    for node in graph_behind([mark.edge.node for mark in marks], oldest):
        if node.name() == "CheckpointFunctionBackward" or not unpacks_quietly(node):
            return (
                "its steps are checkpointed, or save tensors with hooks of their own, and every pass over the graph "
                "would run those again: record without the checkpoint"
            )
    return ""


def _stands_ahead(track: Track, closure: Closure) -> bool | None:
    """Whether a loss reaches its own step before the first mark; None if it does in part.

    If the first state is not the result of a step, `carry` is before the steps.
    """
    later, of_loss = closure.leaves_of_later, closure.leaves_of_loss
    if not track.calls[0].marks or not leaves_of_first_step(track.marks) & later:
        return True
    return True if later <= of_loss else None if later & of_loss else False


def _disproved(found: LoopMeasurement) -> str:
    """Why the measurement fails its proof; empty if lag gradients add up to the gradient and adjoints agree."""
    if not math.isfinite(found.gradient_norm) or not bool(found.adjoint_norm.isfinite().all()):
        return "its gradients are not finite"
    worst = max(found.residual.values(), default=0.0)
    adjoint = 0.0 if found.adjoint_residual != found.adjoint_residual else found.adjoint_residual
    if not (worst <= found.bound and adjoint <= found.bound):
        return (
            f"what moves back from step to step does not add up to the gradient (off by {max(worst, adjoint):.1e}): "
            "a hook or an operation changes gradients by more than a linear map"
        )
    return ""


@contextmanager
def _kept_gradients(tracks: Sequence[Track]) -> Iterator[None]:
    """Restore `.grad` of marked tensors that retain it: the recorder's passes would add to it."""
    tensors = [
        t for track in tracks for call in track.calls for t in (*call.others, *call.returned)
    ]
    kept = [(tensor, tensor.grad) for tensor in tensors if tensor.retains_grad]
    try:
        yield
    finally:
        for tensor, gradient in kept:
            tensor.grad = gradient
