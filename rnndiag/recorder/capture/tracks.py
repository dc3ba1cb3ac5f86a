"""Tracks: calls of one module, or of one `carry`, that each continue from the state of the call before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from rnndiag.engine.segments.closure import closure_of, marks_behind
from rnndiag.engine.segments.marks import Edge, Mark
from rnndiag.recorder.capture.chains import chains
from rnndiag.recorder.capture.loop_calls import LoopCall
from rnndiag.recorder.capture.resets import unless_scattered


@dataclass
class Track:
    """Calls of one module, or of one `carry`, that each continue from the state of the call before."""

    owner: str
    calls: list[LoopCall]
    name: str = ""
    fault: str = ""
    """Why the calls do not form a loop that could be measured; empty if they do."""

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The marks of all calls, each with the call's number in the track as its time."""
        return tuple(
            replace(mark, time=time) for time, call in enumerate(self.calls) for mark in call.marks
        )

    @property
    def of_carry(self) -> bool:
        """Whether the calls are those of `carry`."""
        return self.calls[0].module is None

    def overlaps(self, other: Track) -> bool:
        """Whether the calls of both tracks alternate."""
        return (
            self.calls[0].number < other.calls[-1].number
            and other.calls[0].number < self.calls[-1].number
        )


def tracks_of(calls: Sequence[LoopCall]) -> list[Track]:
    """Group the calls by module, and within a module by the state that they continue."""
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
    """The nearest calls whose outputs the tensors are computed from."""
    edges = [get_gradient_edge(tensor) for tensor in tensors if tensor.grad_fn is not None]
    return marks_behind([(edge.node, edge.output_nr) for edge in edges], stops, oldest)[0]


def for_replay(track: Track) -> str:
    """Why the replay does not describe the track; empty if it does."""
    if track.fault:
        return track.fault
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


def together(group: Sequence[Track]) -> list[Mark] | None:
    """The marks of several tracks as one state, if every step calls each of them once, in the same order; else None."""
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


def in_one(tracks: Sequence[Track], roots: Sequence[Edge]) -> list[Track]:
    """Join consecutive tracks of one module or `carry` if they are to be measured on the graph.

    A state that is detached or newly started cuts a loop into several tracks. Truncation cuts all of them, and each
    alone would be compared with the gradient of all. roots: the differentiated tensors.
    """
    by_owner: dict[tuple[bool, str], list[Track]] = {}
    for track in tracks:
        by_owner.setdefault((track.of_carry, track.owner), []).append(track)
    found: list[Track] = []
    for (of_carry, owner), own in by_owner.items():
        whole = Track(owner, [call for track in own for call in track.calls], own[0].name)
        apart = any(
            track.fault or track.overlaps(other)
            for k, track in enumerate(own)
            for other in own[:k] or own[1:]
        )
        for_graph = of_carry or any(map(for_replay, own))
        joined = len(own) > 1 and for_graph and not apart
        found += [whole] if joined and not closure_of(whole.marks, roots).open else own
    return sorted(found, key=lambda track: track.calls[0].number)


def groups_of(tracks: Sequence[Track]) -> list[list[Track]]:
    """Tracks whose calls alternate, grouped."""
    found: list[list[Track]] = []
    for track in tracks:
        touching = [group for group in found if any(track.overlaps(other) for other in group)]
        merged = [other for group in touching for other in group] + [track]
        found = [group for group in found if group not in touching] + [merged]
    return [sorted(group, key=lambda track: track.calls[0].number) for group in found]
