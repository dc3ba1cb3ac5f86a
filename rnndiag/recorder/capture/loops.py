"""From the calls of a backward pass to its loops: proved for the replay, measured on the graph, or open.

A loop that the replay may describe is one whose steps hand their state on as it is, with nothing else leading back.
Everything else is measured on the user's graph, if it is closed: every way from a later loss to an earlier state goes
through the states in between. What is neither is open, and its reach is withdrawn with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from rnndiag.engine.segments.closure import Closure, closure_of, marks_behind
from rnndiag.engine.segments.marks import LEAF, Edge, Mark, sequence_number
from rnndiag.engine.segments.measure import LoopMeasurement, MarkedLoop, measure_loop
from rnndiag.recorder.capture.chains import chains
from rnndiag.recorder.capture.engine_entry import own_passes, run_backward
from rnndiag.recorder.capture.loop_calls import LoopCall
from rnndiag.recorder.capture.reset_proof import unpacks_quietly
from rnndiag.recorder.capture.resets import unless_scattered
from rnndiag.recorder.faults import describe

CARRY = "mark all that lives from step to step: `h, old, ... = rnndiag.carry(h, old, ...)` at the head of the loop"


@dataclass
class Track:
    """Calls of one module, or of one `carry`, each of which goes on from the state of the one before."""

    owner: str
    calls: list[LoopCall]
    name: str = ""
    fault: str = ""
    """Why the calls are no loop that could be measured."""

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The marks of all calls, each with the call's number in the track as its time."""
        return tuple(
            replace(mark, time=time) for time, call in enumerate(self.calls) for mark in call.marks
        )

    @property
    def of_carry(self) -> bool:
        """Whether `carry` made the marks."""
        return self.calls[0].module is None

    def overlaps(self, other: Track) -> bool:
        """Whether calls of both alternate."""
        return (
            self.calls[0].number < other.calls[-1].number
            and other.calls[0].number < self.calls[-1].number
        )


@dataclass(frozen=True)
class Loops:
    """What was found of the loops of one backward pass."""

    measured: tuple[LoopMeasurement, ...] = ()
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a measurement of several modules -> the names of their recurrences."""
    open: Mapping[str, str] = field(default_factory=dict)
    """Recurrence -> what leads around its state."""
    calls: Mapping[int, str] = field(default_factory=dict)
    """Number of a replayed call -> the recurrence that it belongs to, where that is not for the replay alone."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Such a recurrence -> why the replay does not tell its lags."""
    owners: frozenset[str] = frozenset()
    """Modules whose calls are not for the replay alone."""

    def without(self, names: Set[str]) -> Loops:
        """The same without some loops."""
        if not names:
            return self
        measured = tuple(found for found in self.measured if found.name not in names)
        is_open = {name: why for name, why in self.open.items() if name not in names}
        return replace(self, measured=measured, open=is_open)

    @property
    def tells(self) -> bool:
        """Whether anything was found that the replay does not tell."""
        return bool(self.measured or self.open)


def tracks_of(calls: Sequence[LoopCall]) -> list[Track]:
    """The calls by module, and within a module by the state that they go on from."""
    by_owner: dict[str, list[LoopCall]] = {}
    for call in calls:
        by_owner.setdefault(call.owner, []).append(call)
    found: list[Track] = []
    for owner, own in by_owner.items():
        tracks = _tracks_of_one(owner, own)
        for number, track in enumerate(tracks, 1):
            track.name = f"{own[0].name or owner or 'cell'}" + (f"#{number}" if number > 1 else "")
        found += tracks
    return sorted(found, key=lambda track: track.calls[0].number)


def _tracks_of_one(owner: str, calls: Sequence[LoopCall]) -> list[Track]:
    stops: dict[Edge, int] = {}
    oldest = 2**63
    tracks: list[Track] = []
    track_of: dict[int, Track] = {}
    for call in calls:
        found = _sources(call.others, stops, oldest) or _sources(call.inputs, stops, oldest)
        track: Track | None = None
        if found:
            track = track_of[max(found)]
            if track.calls[-1].number != max(found):
                track.fault = "more than one call goes on from the same state"
                track = Track(owner, [], fault=track.fault)
                tracks.append(track)
        elif tracks and call.module is None and not tracks[-1].calls[-1].marks:
            track = tracks[-1]  # the state that the loop began with had no gradient
        if track is None:
            track = Track(owner, [])
            tracks.append(track)
        track.calls.append(call)
        track_of[call.number] = track
        for mark in call.marks:
            stops[mark.place] = call.number
            oldest = min(oldest, mark.number)
    return tracks


def _sources(tensors: Iterable[Tensor], stops: Mapping[Edge, int], oldest: int) -> set[int]:
    """The calls whose outputs the tensors are made of, without those behind them."""
    edges = [get_gradient_edge(tensor) for tensor in tensors if tensor.grad_fn is not None]
    return marks_behind([(edge.node, edge.output_nr) for edge in edges], stops, oldest)[0]


def for_replay(track: Track) -> str:
    """Empty if the replay describes the track as it is; else why not."""
    records = [call.record for call in track.calls]
    known = [record for record in records if record is not None and not record.refusal]
    if len(known) < len(records):
        return "its steps cannot be replayed"
    found = chains(known)
    if len(found) != 1 or len(unless_scattered(found[0])) != 1:
        return "its state is changed between the steps, or only a part of it is handed on"
    if any(call.has_hooks for call in track.calls):
        return "a hook stands on its state"
    stops = {mark.place: call.number for call in track.calls for mark in call.marks}
    oldest = min(mark.number for call in track.calls for mark in call.marks)
    for call in track.calls[1:]:
        if _sources(call.inputs, stops, oldest):
            return "what it returned comes back as its input"
    return ""


def find_loops(
    calls: Sequence[LoopCall],
    roots: Sequence[Any],
    given: Sequence[Tensor | None],
    model: nn.Module,
    measure: bool = True,
    max_lags: int | None = None,
) -> tuple[Loops, list[LoopCall]]:
    """The loops that a backward pass from these roots goes through, and the calls that it reaches.

    measure: False: what would be measured on the graph is open instead. max_lags: how many lags are measured at most.
    """
    reached = _reached(calls, roots)
    numbers = {call.number for call in reached if call.marks}
    # of all calls: one that the loss does not depend on is a step all the same
    tracks = [
        track
        for track in tracks_of(calls)
        if len(track.calls) > 1 and any(call.number in numbers for call in track.calls)
    ]
    if not tracks:
        return Loops(), reached
    finder = _Finder(tracks, roots, given, model, measure, max_lags)
    finder.run()
    return finder.loops(), reached


def _reached(calls: Sequence[LoopCall], roots: Sequence[Any]) -> list[LoopCall]:
    """The calls that the roots depend on; those of `carry` without a mark too."""
    places = {mark.place: call.number for call in calls for mark in call.marks}
    if not places:
        return []
    oldest = min(mark.number for call in calls for mark in call.marks)
    found: set[int] = set()
    seen: set[Any] = set()
    waiting = [_edge_of(root) for root in roots]
    while waiting:
        node, number = waiting.pop()
        if node is None:
            continue
        if (node, number) in places:
            found.add(places[node, number])
        if node in seen or not oldest <= sequence_number(node) < LEAF:
            continue
        seen.add(node)
        waiting.extend(node.next_functions)
    return [call for call in calls if call.number in found or not call.marks]


def _edge_of(root: Any) -> Edge:
    if isinstance(root, Tensor):
        return root.grad_fn, root.output_nr
    return root.node, root.output_nr


class _Finder:
    """Decides of every track, and measures what has to be."""

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
        self.edges = [_edge_of(root) for root in roots]
        self.names = {id(value): name for name, value in model.named_parameters()}
        self.closures: dict[int, Closure] = {}
        self.why: dict[int, str] = {}
        """Track -> why it is not for the replay; empty: it is."""
        self.measured: list[LoopMeasurement] = []
        self.members: dict[str, tuple[str, ...]] = {}
        self.open: dict[str, str] = {}

    def run(self) -> None:
        """All tracks: those of `carry` first, which may stand for the modules called in their loops."""
        carried = [track for track in self.tracks if track.of_carry]
        modules = [track for track in self.tracks if not track.of_carry]
        for track in carried:
            self.closures[id(track)] = closure_of(track.marks, self.edges)
        self._close(modules)
        covered: list[Track] = []
        for group in _groups(carried):
            covered += self._settle(group)
        for track in modules:
            closed = not self.closures[id(track)].open
            self.why[id(track)] = for_replay(track) if closed else self.closures[id(track)].open
        for group in _groups(modules):
            rest = [track for track in group if self.why[id(track)]]
            by_carry = [t for t in rest if any(t.overlaps(other) for other in covered)]
            for track in by_carry:
                if self.closures[id(track)].open:
                    rest.remove(track)  # its loop is measured as a whole
            self._settle(group, rest)

    def _close(self, tracks: list[Track]) -> None:
        """Walk between the marks of each track of a module, which may lie below others, but not below and above one."""
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
        """Measure the group as one state, as detaching at a step cuts all of it; else its tracks one by one.

        The tracks that were measured are returned.
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
        joint = _together(group)
        fault = f"it alternates with {', '.join(names)} in no fixed order"
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
        fault = unpacking_fault(marks)
        if fault:
            self.open[name] = fault
            return False
        hooks = any(call.has_hooks for track in self.tracks for call in track.calls)
        loop = MarkedLoop(name, tuple(marks), parameters, closure.within, coarse, hooks, ahead)
        try:
            with own_passes(), _kept_gradients(tracks), _same_random_state(marks[0].root.device):
                try:
                    result = self._run(loop)
                except Exception:
                    if hooks:
                        raise
                    # a hook elsewhere may not take None for a gradient
                    loop = replace(loop, hooks=True)
                    result = self._run(loop)
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
        """The modules' own parameters; of a `carry`, all that the steps of the loop use."""
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
        """What was found."""
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
    """Whether what the steps saved is unpacked by hooks, as a checkpoint does, which runs the forward pass again."""
    oldest = min(mark.number for mark in marks)
    seen: set[Any] = set()
    waiting: list[Any] = [mark.edge.node for mark in marks]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or not oldest <= sequence_number(node) < LEAF:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward" or not unpacks_quietly(node):
            return (
                "its steps are checkpointed, or save tensors with hooks of their own, and every pass over the graph "
                "would run those again: record without the checkpoint"
            )
        waiting.extend(child for child, _ in node.next_functions)
    return ""


def _stands_ahead(track: Track, closure: Closure) -> bool | None:
    """Whether `carry` stands before the steps; None where the graph does not show it.

    Before them, the first state comes from no step. Behind them it does, and the loss reads the last state, not a step.
    """
    first, later = closure.leaves_of_first, closure.leaves_of_later
    if not track.calls[0].marks or not first & later:
        return True
    return False if later <= first and not later <= closure.leaves_of_loss else None


def _together(group: Sequence[Track]) -> list[Mark] | None:
    """The marks of several tracks as one state, if every step calls each of them once, in the same order."""
    T = len(group[0].calls)
    if any(len(track.calls) != T or track.fault for track in group):
        return None
    if any(call.steps != 1 for track in group for call in track.calls):
        return None
    ordered = sorted(
        (call.number, k, time)
        for k, track in enumerate(group)
        for time, call in enumerate(track.calls)
    )
    expected = [(k, time) for time in range(T) for k in range(len(group))]
    if [(k, time) for _, k, time in ordered] != expected:
        return None
    return [
        replace(mark, part=f"{track.name} {mark.part}") for track in group for mark in track.marks
    ]


def _groups(tracks: Sequence[Track]) -> list[list[Track]]:
    """Tracks whose calls alternate, together."""
    found: list[list[Track]] = []
    for track in tracks:
        touching = [group for group in found if any(track.overlaps(other) for other in group)]
        merged = [other for group in touching for other in group] + [track]
        found = [group for group in found if group not in touching] + [merged]
    return [sorted(group, key=lambda track: track.calls[0].number) for group in found]


def _disproved(found: LoopMeasurement) -> str:
    """Empty if the lag gradients add up to the gradient, and what moved back to the adjoints."""
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
    """Put back `.grad` of marked tensors that were asked to keep it: passes of the recorder would add to it."""
    tensors = [
        t for track in tracks for call in track.calls for t in (*call.others, *call.returned)
    ]
    kept = [(tensor, tensor.grad) for tensor in tensors if tensor.retains_grad]
    try:
        yield
    finally:
        for tensor, gradient in kept:
            tensor.grad = gradient


@contextmanager
def _same_random_state(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
