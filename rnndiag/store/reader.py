"""Reads a run: the recordings of all segments, ranks and starts as one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from rnndiag.errors import BadArgument, RunUnreadable
from rnndiag.store import problem
from rnndiag.store.collect import Collector
from rnndiag.store.ending import Ending, ending_of
from rnndiag.store.judged import AT_LEAST, DEFAULT_WINDOW, judged_steps
from rnndiag.store.live_recordings import live_recordings, rank_problems
from rnndiag.store.measurement import Series
from rnndiag.store.problem import Problem
from rnndiag.store.ranks import pooled_recording
from rnndiag.store.recording import Recording
from rnndiag.store.redact import redact_addresses
from rnndiag.store.scan import Scan
from rnndiag.store.segment import Place
from rnndiag.store.status import Status, status_of
from rnndiag.store.text import mapping, meant

Steps = Iterable[int] | slice | int | None
"""A choice of steps: a slice (both ends count), several, one, or all."""

_LISTED_IN_FULL = 12


class Recordings(Sequence[Recording]):
    """Recordings in order of step, ranks pooled. Each is read on access and not cached."""

    def __init__(self, collector: Collector, groups: Sequence[Sequence[Place]]) -> None:
        self._collector, self._groups = collector, groups

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, position: int) -> Recording: ...
    @overload
    def __getitem__(self, position: slice) -> Recordings: ...
    def __getitem__(self, position: int | slice) -> Recording | Recordings:
        if isinstance(position, slice):
            return Recordings(self._collector, self._groups[position])
        return pooled_recording(self._collector.recordings(self._groups[position], None))

    def __iter__(self) -> Iterator[Recording]:
        """All readable recordings; damaged ones are skipped and listed in `run.problems`."""
        for group in self._groups:
            found = self._collector.recordings(group, None, lenient=True)
            if found:
                yield pooled_recording(found)


class StoredRun:
    """A run directory opened for reading. Opening is cheap; arrays are read on demand.

    Ranks are pooled into one recording per step and phase unless `rank=` names one.
    """

    def __init__(self, path: str | os.PathLike[str], salvage: bool = False) -> None:
        self.path = path if isinstance(path, str) and "://" in path else Path(path)
        self.scan = Scan(path, salvage)
        self._settle()

    def _settle(self) -> None:
        self._live = live_recordings(self.scan.segments)
        self.collector = Collector(self._live.groups)
        found = {group[0].phase for group in self._live.groups}
        self._phases = tuple(sorted(found, key=lambda phase: (phase != "train", phase)))
        self._steps: dict[str, np.ndarray] = {}
        self._judged: dict[tuple[str, int, str | None], np.ndarray] = {}
        self._stacks: dict[str, tuple[str, ...]] | None = None

    def refresh(self) -> int:
        """Read bytes appended since the last call; returns the number of new recordings."""
        before = sum(len(segment.places) for segment in self.scan.segments)
        self.scan.advance()
        now = sum(len(segment.places) for segment in self.scan.segments)
        found = self.collector
        self._settle()
        self.collector.inherit(found)
        return now - before

    @property
    def name(self) -> str:
        """The last part of the path."""
        path = redact_addresses(str(self.path))
        return path.rstrip("/").rpartition("/")[2] or path

    @property
    def provenance(self) -> dict[str, Any]:
        """Provenance stored by the newest start: versions, host, git, model, config, trainer."""
        facts = self.scan.newest_facts.get("provenance")
        return facts if isinstance(facts, dict) else {}

    @property
    def facts(self) -> dict[str, Any]:
        """The newest open.json, with format, start, world size and registry."""
        return self.scan.newest_facts

    @property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """open.json of the lowest rank of each start, in order, without the registry."""
        return self.scan.starts

    @property
    def status(self) -> Status:
        """`finished`, `ended early, SIGTERM`, `running`, or `not closed, last recording 3 h ago`."""
        count = len(self.recordings)
        return status_of(self.scan.segments, count, self._interval())

    def _interval(self) -> float:
        if len(self.recordings) < 2:
            return 0.0
        times = [self.collector.facts(group[0])["time"] for group in self._live.groups[-2:]]
        return float(np.nan_to_num(times[1] - times[0]))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems of the run, one sentence each: found on opening and by reading since."""
        found = [*self.scan.problems, *self._live.problems, *self.collector.problems]
        running = None
        if self.status.word == "running":
            running = max(segment.name.start for segment in self.scan.segments)
        cut = [s for s in self.scan.segments if s.missing and s.name.start != running]
        for end in self.endings:
            if end.dropped:
                found.append(
                    problem.dropped(
                        end.file, end.dropped, end.first_dropped, end.last_dropped, end.why_dropped
                    )
                )
            found += [problem.gave_up(end.file, part, why) for part, why in end.gave_up.items()]
        found += rank_problems(self.scan.segments, self._live.groups, running, self._is_extra)
        found += [problem.cut_off(s.label, s.missing, len(s.places), s.missing_step) for s in cut]
        return tuple(dict.fromkeys(found))

    @property
    def endings(self) -> tuple[Ending, ...]:
        """The ending that each writer stored on closing; a killed writer stored none."""
        resumed = {
            segment.name.start: segment.facts["resumed_from_step"]
            for segment in self.scan.segments
            if "resumed_from_step" in segment.facts
        }
        found = []
        for end in filter(None, map(ending_of, self.scan.segments)):
            later = [step for start, step in resumed.items() if start > end.start]
            if later and end.first_dropped is not None and end.first_dropped > min(later):
                end = replace(end, dropped=0)  # those steps were trained, and recorded, again
            found.append(end)
        return tuple(found)

    def _is_extra(self, place: Place) -> bool:
        """Whether only this rank made the recording, because its black box caught a fault there."""
        return "black_box" in mapping(self.collector.facts(place), "notes")

    @property
    def superseded(self) -> int:
        """Number of recordings that do not count because the step was recorded again or a resume undid it."""
        return len(self._live.superseded)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        total = 0
        for segment in self.scan.segments:
            with suppress(OSError):  # gone, or replaced since it was opened
                total += segment.file.size()
        return total

    @property
    def ranks(self) -> tuple[int, ...]:
        """All ranks with a recording that counts."""
        return tuple(
            sorted({place.segment.name.rank for group in self._live.groups for place in group})
        )

    @property
    def phases(self) -> tuple[str, ...]:
        """All phases recorded, `train` first."""
        return self._phases

    @property
    def steps(self) -> np.ndarray:
        """Steps of the recordings of the main phase (`train` if there is one), rising."""
        return self.steps_of(self.phases[0]) if self._live.groups else np.zeros(0, np.int64)

    def steps_of(self, phase: str) -> np.ndarray:
        """Steps of the recordings of one phase, rising."""
        if phase not in self._steps:
            steps = [group[0].step for group in self._live.groups if group[0].phase == phase]
            self._steps[phase] = np.asarray(steps, np.int64)
            self._steps[phase].flags.writeable = False
        return self._steps[phase]

    @property
    def layers(self) -> tuple[str, ...]:
        """All layer runs with a measurement, in order of first appearance; neither the model nor stacks."""
        return self.collector.layers

    @property
    def quantities(self) -> tuple[str, ...]:
        """All quantities with a measurement, in order of first appearance."""
        return self.collector.quantities

    def layers_of(self, quantity: str) -> tuple[str, ...]:
        """The layers with a measurement of a quantity; `model` stands for the whole model."""
        return self.collector.layers_of(quantity)

    @property
    def groups(self) -> tuple[tuple[Place, ...], ...]:
        """Locations of the recordings that count: per step and phase, one place per rank."""
        return self._live.groups

    @property
    def stacks(self) -> dict[str, tuple[str, ...]]:
        """The stacks named in the recordings, each with its layers, lowest first."""
        if self._stacks is not None:
            return self._stacks
        found: dict[str, tuple[str, ...]] = {}
        for outline in self.outlines:
            for name, layers in mapping(outline.notes, "stacks").items():
                if isinstance(layers, list | tuple):
                    found[str(name)] = tuple(map(str, layers))
        self._stacks = found
        return found

    def __contains__(self, key: object) -> bool:
        return key in self.collector.keys if isinstance(key, tuple) else key in self.quantities

    def __len__(self) -> int:
        return len(self._live.groups)

    def __repr__(self) -> str:
        return (
            f"<run {self.name}: {len(self)} recordings, {len(self.layers)} layers, {self.status}>"
        )

    def __iter__(self) -> Iterator[Recording]:
        """All readable recordings, in order of step."""
        return iter(self.recordings)

    @property
    def recordings(self) -> Recordings:
        """All recordings in order of step, ranks pooled, each read on access."""
        return Recordings(self.collector, self._live.groups)

    @property
    def first(self) -> Recording:
        """The first recording of the main phase."""
        return self.at(int(self._some_steps()[0]))

    @property
    def last(self) -> Recording:
        """The last recording of the main phase."""
        return self.at(int(self._some_steps()[-1]))

    def _some_steps(self) -> np.ndarray:
        steps = self.steps
        if not steps.size:
            raise no_recordings(self)
        return steps

    def at(self, step: int, phase: str | None = None, rank: int | None = None) -> Recording:
        """The recording of one step; ranks are pooled unless one is named."""
        self.refuse_unknown(rank, phase)
        wanted = phase or (self.phases[0] if self.phases else "train")
        for group in self._live.groups:
            if group[0].step == step and group[0].phase == wanted:
                return self._read(group, rank)
        raise RunUnreadable(
            f"{self.name} has no recording of step {step} in phase {wanted!r}.",
            f"It has steps {listed(self.steps_of(wanted))}.",
        )

    def _read(self, group: Sequence[Place], rank: int | None = None) -> Recording:
        return pooled_recording(self.collector.recordings(group, rank))

    @property
    def outlines(self) -> tuple[Recording, ...]:
        """All recordings without their measurements: steps, times, verdicts and notes of the lowest rank. Fast."""
        return self.collector.outlines

    @overload
    def __getitem__(self, key: tuple[str, str]) -> Series: ...
    @overload
    def __getitem__(self, key: str) -> Series: ...
    def __getitem__(self, key: tuple[str, str] | str) -> Series:
        """`run["credit_profile", "rnn.l0"]` over all recordings, or `run["loss"]`: see `select`."""
        quantity, layer = key if isinstance(key, tuple) else (key, None)
        return self.select(quantity, layer=layer)

    def select(
        self,
        quantity: str,
        layer: str | None = None,
        steps: Steps = None,
        rank: int | None = None,
        phase: str | None = None,
    ) -> Series:
        """One quantity over recordings: dims `step` and the quantity's own, shorter recordings padded with NaN.

        Without a layer: the whole model's or the only layer's, and of several layers all, with a first dim `layer`.
        `steps` is a slice of steps (both ends count), several steps or one; `rank` keeps to one rank instead of
        pooling all. Without a `phase`: the main one, or for what it lacks the next one that has it.
        """
        steps = chosen_steps(steps)
        self.refuse_unknown(rank, phase)
        layers = (layer,) if layer is not None else self.layers_for(quantity, None, None)
        wanted = (phase,) if phase else self.phases
        for one in wanted:
            found = [self.collector.series(quantity, name, steps, rank, one) for name in layers]
            kept = [series for series in found if series is not None]
            if kept:
                return kept[0] if len(kept) == 1 else self.collector.over_layers(kept)
        self.layers_for(quantity, layer, None)  # raises for unknown names
        of = "" if layer is None else f" of layer {layer!r}"
        by = "" if rank is None else f" by rank {rank}"
        at = "" if steps is None else " at these steps"
        raise RunUnreadable(
            f"{self.name} has no readable {quantity!r}{of}{by} in phase {' or '.join(wanted)}{at}.",
            f"It has steps {listed(self.steps_of(wanted[0]))}; `rnndiag verify` says what is damaged.",
        )

    def find(
        self, quantity: str, layer: str, steps: Iterable[int] | slice | None = None
    ) -> Series | None:
        """Like `select` for one layer, but None if there is no such measurement."""
        return self.collector.found(quantity, layer, steps, self.phases)

    def layers_for(
        self, quantity: str, layer: str | None, steps: Iterable[int] | slice | None = None
    ) -> tuple[str, ...]:
        """The layers selected by `layer`: the one named, or all with a measurement of the quantity (at these steps)."""
        if not len(self):
            raise no_recordings(self)
        layers = self.collector.layers_of(quantity, steps)
        if not layers:
            when = "" if steps is None else " at these steps"
            if any(name == quantity for name, _ in self.collector.keys):
                raise RunUnreadable(
                    f"{self.name} has no {quantity!r}{when}.",
                    "It has it at others: `run.at(step).notes['not_measured']` says why it was left out here, states "
                    "or gradients that are not finite, say.",
                )
            raise RunUnreadable(
                f"{self.name} has no quantity {quantity!r}{when}.",
                f"{meant(quantity, self.quantities)}It has {', '.join(self.quantities) or 'none'}.",
            )
        if layer is not None and layer not in layers:
            raise RunUnreadable(
                f"{self.name} has no {quantity!r} of layer {layer!r}.",
                f"{meant(layer, layers)}It has it of {', '.join(layers)}.",
            )
        return layers if layer is None else (layer,)

    def refuse_unknown(self, rank: int | None, phase: str | None) -> None:
        """Raise RunUnreadable for a rank or a phase that the run does not have."""
        if phase is not None and phase not in self.phases:
            raise RunUnreadable(
                f"{self.name} has no phase {phase!r}.",
                f"{meant(phase, self.phases)}It has {', '.join(self.phases) or 'no recordings'}.",
            )
        if rank is not None and rank not in self.ranks:
            raise RunUnreadable(
                f"{self.name} has nothing of rank {rank}.",
                f"It has rank {', '.join(map(str, self.ranks)) or 'none'}.",
            )

    def judged(
        self, window: str = DEFAULT_WINDOW, at_least: int = AT_LEAST, phase: str | None = None
    ) -> np.ndarray:
        """Steps of the recordings by which the run is judged: the last 20 %, at least 5 (all where there are fewer)."""
        key = (window, at_least, phase)
        if key not in self._judged:
            steps = self.steps if phase is None else self.steps_of(phase)
            self._judged[key] = judged_steps(steps, window, at_least)
        return self._judged[key]

    def verify(self) -> tuple[Problem, ...]:
        """Read every byte and check every CRC, superseded recordings too; all problems of what is stored.

        What the writer dropped or gave up was never stored: `problems` names it.
        """
        everything = [place for segment in self.scan.segments for place in segment]
        for place in everything:
            self.collector.recordings((place,), None, lenient=True)
        return tuple(p for p in self.problems if p.kind not in ("dropped", "gave up"))


def chosen_steps(steps: Steps) -> list[int] | slice | None:
    """The choice of steps as a list or slice that can be iterated again; a single step is allowed."""
    if steps is None:
        return None
    if isinstance(steps, slice):
        if steps.step is not None and steps.step < 1:
            raise BadArgument(
                f"Steps cannot be chosen by a slice with stride {steps.step}.",
                "Let it be 1 or more.",
            )
        return steps
    return [int(steps)] if isinstance(steps, (int, np.integer)) else [int(step) for step in steps]


def no_recordings(run: StoredRun) -> RunUnreadable:
    """The error raised for a run without recordings."""
    return RunUnreadable(
        f"{run.name} holds no recordings.",
        "The training stopped before the first one, or none of them can be read: see `rnndiag show`.",
    )


def listed(steps: np.ndarray) -> str:
    """Steps as text: all of them, or the first and the last if there are many."""
    if steps.size > _LISTED_IN_FULL:
        return f"{steps[0]} to {steps[-1]} ({steps.size} of them)"
    return ", ".join(map(str, steps.tolist())) or "none"
