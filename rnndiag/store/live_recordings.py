"""Selects the recordings that count: the last of each rank, step and phase, without those undone by a resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice

from rnndiag.store import problem
from rnndiag.store.problem import Problem
from rnndiag.store.segment import Place, Segment

_PHASES_FIRST = ("train",)
_NAMED = 5
"""Number of missing files that are named; further ones are only counted."""


@dataclass(frozen=True)
class LiveRecordings:
    """`groups`: per step and phase, in order, one place per rank. `superseded`: number of recordings that do not
    count."""

    groups: tuple[tuple[Place, ...], ...]
    superseded: tuple[Place, ...]
    problems: tuple[Problem, ...]


def _age(segment: Segment) -> tuple[int, float, str, int]:
    name = segment.name
    started: float = segment.facts.get("started", 0.0)
    return name.start, started, name.token, name.number


def _resumed(segments: Sequence[Segment]) -> dict[int, int]:
    """Start number -> the training step from which that resumed start continued."""
    resumed: dict[int, int] = {}
    for segment in segments:
        step = segment.facts.get("resumed_from_step")
        if step is not None:
            resumed[segment.name.start] = min(step, resumed.get(segment.name.start, step))
    return resumed


def live_recordings(segments: Sequence[Segment]) -> LiveRecordings:
    """Select the recordings that count among all segments."""
    resumed = _resumed(segments)
    live: dict[tuple[int, str, int], Place] = {}
    superseded: list[Place] = []
    undone: dict[int, int] = {}
    for segment in sorted(segments, key=_age):
        start, rank = segment.name.start, segment.name.rank
        later = [(step, at) for at, step in resumed.items() if at > start]
        limit, limit_start = min(later, default=(None, 0))
        for place in segment:
            # A later start resumed from an earlier step, which undoes this recording.
            if limit is not None and place.step > limit:
                superseded.append(place)
                undone[limit_start] = undone.get(limit_start, 0) + 1
                continue
            key = (place.step, place.phase, rank)
            if key in live:
                superseded.append(live[key])
                if live[key].segment.name.start != start and start in resumed:
                    undone[start] = undone.get(start, 0) + 1
            live[key] = place
    problems = [
        problem.re_recorded(count, resumed[start]) for start, count in sorted(undone.items())
    ]
    groups: dict[tuple[int, str], list[Place]] = {}
    for step, phase, rank in sorted(live, key=_order):
        groups.setdefault((step, phase), []).append(live[step, phase, rank])
    problems += _writers(segments)
    return LiveRecordings(tuple(map(tuple, groups.values())), tuple(superseded), tuple(problems))


def _order(key: tuple[int, str, int]) -> tuple[int, bool, str, int]:
    step, phase, rank = key
    return step, phase not in _PHASES_FIRST, phase, rank


def _writers(segments: Sequence[Segment]) -> list[Problem]:
    """Problems of each writer's files together: a second writer, a missing file, fewer recordings than it counted."""
    problems: list[Problem] = []
    tokens: dict[tuple[int, int], dict[str, list[Segment]]] = {}
    for segment in segments:
        name = segment.name
        tokens.setdefault((name.rank, name.start), {}).setdefault(name.token, []).append(segment)
    for (rank, start), writers in sorted(tokens.items()):
        if len(writers) > 1:
            files = ", ".join(group[0].label for group in writers.values())
            problems.append(problem.two_writers(files, rank, start))
        for group in writers.values():
            group.sort(key=lambda segment: segment.name.number)
            numbers = {segment.name.number for segment in group}
            # Segments are numbered from 0 without gaps.
            gone = max(numbers) + 1 - len(numbers)
            if gone:
                first = list(islice((n for n in count() if n not in numbers), min(gone, _NAMED)))
                problems.append(problem.missing_segments(group[-1].label, first, gone))
            problems += _unkept(group)
    return problems


def rank_problems(
    segments: Sequence[Segment],
    groups: Sequence[Sequence[Place]],
    skip_start: int | None,
    is_extra: Callable[[Place], bool],
) -> list[Problem]:
    """Ranks that left no file, or whose recordings end before those of the other ranks.

    Args:
        segments: All segments of the run.
        groups: Per step and phase, the places of the ranks that recorded it.
        skip_start: A start that is still being written, where a rank may be behind for a moment.
        is_extra: Whether a recording was made by one rank on its own account (an accident seen by the black box).
    """
    found: list[Problem] = []
    for start in sorted({segment.name.start for segment in segments} - {skip_start}):
        of_start = [s for s in segments if s.name.start == start and s.readable and s.facts]
        sizes = [s.facts.get("world_size") for s in of_start]
        world = max((n for n in sizes if isinstance(n, int) and not isinstance(n, bool)), default=1)
        ranks = {segment.name.rank for segment in of_start}
        if world > 1 and ranks:
            absent = islice((rank for rank in range(world) if rank not in ranks), _NAMED + 1)
            found += [problem.rank_absent(rank, world, start) for rank in absent]
        # Killed all at once, ranks stop a recording apart: the status says that none of them was closed.
        if min(world, len(ranks)) > 1 and any(segment.end is not None for segment in of_start):
            found += _behind(start, ranks, groups, is_extra)
    return found


def _behind(
    start: int,
    ranks: set[int],
    groups: Sequence[Sequence[Place]],
    is_extra: Callable[[Place], bool],
) -> list[Problem]:
    own = [[p for p in group if p.segment.name.start == start] for group in groups]
    own = [group for group in own if group and group[0].phase in _PHASES_FIRST]
    found = []
    for rank in sorted(ranks):
        later: list[Place] = []
        for group in reversed(own):
            if any(place.segment.name.rank == rank for place in group):
                break
            later.append(group[0])
        later = [place for place in later if not is_extra(place)]
        if later:
            label = later[-1].segment.label
            found.append(
                problem.rank_behind(label, rank, len(later), later[-1].step, later[0].step)
            )
    return found


def _unkept(group: Sequence[Segment]) -> list[Problem]:
    end = group[-1].end
    promised = end.get("count") if end is not None else None
    if not isinstance(promised, int) or isinstance(promised, bool):
        return []
    found = sum(len(segment.places) for segment in group)
    return (
        [problem.missing_at_close(group[-1].label, promised - found, promised)]
        if found < promised
        else []
    )
