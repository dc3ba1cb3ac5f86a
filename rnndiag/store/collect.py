"""Collects one quantity, or whole recordings, from all segments of a run, and the problems found on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from rnndiag.errors import RunUnreadable
from rnndiag.store import npz, problem, stored
from rnndiag.store.align import align
from rnndiag.store.layer_names import layers_among
from rnndiag.store.measurement import Measurement, Series
from rnndiag.store.problem import Problem
from rnndiag.store.quantities import QUANTITIES, fits_registry
from rnndiag.store.ranks import POOLING, pool_of, pooled
from rnndiag.store.recording import Recording
from rnndiag.store.segment import Place

Directory = dict[str, npz.Entry]

LABEL_BYTES = 16 * 2**20
"""Most bytes of distinct labels, as stored, that are cached; labels beyond are read again each time."""
FOUND_BYTES = 128 * 2**20
"""Most bytes of series that are cached."""
FEW_RECORDINGS = 32
"""Of a run of at most so many recordings a series is read as a whole, and some of its steps are taken from that."""


class Collector:
    """Reads the recordings in `groups`. Caches their directories, labels and outlines."""

    def __init__(self, groups: Sequence[Sequence[Place]]) -> None:
        self._groups = groups
        self._directories: dict[Place, Directory | None] = {}
        self._layers: dict[object, dict[str, tuple[str, ...]]] = {}
        self._found: dict[object, Series | None] = {}
        self._found_bytes = 0
        self._labels: dict[Place, stored.Labels] = {}
        self._distinct_labels: dict[tuple[int, int], stored.Labels] = {}
        self._label_bytes = 0
        self._damage: dict[Problem, None] = {}

    def inherit(self, earlier: Collector) -> None:
        """Take over what an earlier collector of the same run already read."""
        self._directories.update(earlier._directories)
        self._labels.update(earlier._labels)
        self._distinct_labels.update(earlier._distinct_labels)
        self._label_bytes = earlier._label_bytes
        self._damage.update(earlier._damage)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Problems found by reading so far."""
        return tuple(self._damage)

    @cached_property
    def keys(self) -> dict[stored.Key, None]:
        """Every (quantity, layer) with a measurement, in order of first appearance."""
        return self.keys_at(None)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """All layer runs with a measurement, in order of first appearance."""
        return layers_among(of for _, of in self.keys)

    @cached_property
    def quantities(self) -> tuple[str, ...]:
        """All quantities with a measurement, in order of first appearance."""
        return tuple(dict.fromkeys(quantity for quantity, _ in self.keys))

    def keys_at(self, steps: Iterable[int] | slice | None) -> dict[stored.Key, None]:
        """Every (quantity, layer) with a measurement at these steps, in order of first appearance."""
        names: dict[str, None] = {}
        wanted = _step_filter(steps)
        for group in self._groups:
            for place in group if wanted(group[0].step) else ():
                names.update(dict.fromkeys(self.directory(place)))
        found = (stored.entry_key(name) for name in names)
        return {key: None for key in found if key is not None}

    def found(
        self,
        quantity: str,
        layer: str,
        steps: Iterable[int] | slice | None,
        phases: Sequence[str],
    ) -> Series | None:
        """The series of the first of these phases that has one, from the cache if possible (up to FOUND_BYTES).

        Cached because rules and tables ask for the same few numbers of every layer again and again.
        """
        steps = steps if steps is None or isinstance(steps, slice) else tuple(map(int, steps))
        key = (quantity, layer, _choice(steps))
        if key in self._found:
            return self._found[key]
        if steps is not None and len(self._groups) <= FEW_RECORDINGS:
            found = self._part(self.found(quantity, layer, None, phases), steps)
            if found is not None:
                return found
        tried = (self.series(quantity, layer, steps, None, phase) for phase in phases)
        found = next((series for series in tried if series is not None), None)
        size = 0 if found is None else found.values.nbytes
        if self._found_bytes + size <= FOUND_BYTES:
            self._found[key] = found
            self._found_bytes += size
        return found

    @staticmethod
    def _part(whole: Series | None, steps: Iterable[int] | slice) -> Series | None:
        """These steps of a series in which nothing is padded; None if that has none of them, or is padded."""
        if whole is None or whole.padded:
            return None
        wanted = _step_filter(steps)
        rows = np.array([wanted(step) for step in whole.steps.tolist()], bool)
        if rows.all():
            return whole
        if not rows.any():
            return None
        return whole.at_rows(rows)

    def layers_of(
        self, quantity: str, steps: Iterable[int] | slice | None = None
    ) -> tuple[str, ...]:
        """Layers with a measurement of a quantity at these steps; cached per choice of steps."""
        steps = steps if steps is None or isinstance(steps, slice) else tuple(map(int, steps))
        choice = _choice(steps)
        if choice not in self._layers:
            table: dict[str, list[str]] = {}
            for name, layer in self.keys if steps is None else self.keys_at(steps):
                table.setdefault(name, []).append(layer)
            self._layers[choice] = {name: tuple(layers) for name, layers in table.items()}
        return self._layers[choice].get(quantity, ())

    def directory(self, place: Place) -> Directory:
        """All entries of a recording, read once; empty if it is unreadable, which adds a problem."""
        if place not in self._directories:
            found = self._guarded(place, lambda: place.segment.directory(place))
            self._directories[place] = found
        return self._directories[place] or {}

    def _guarded(self, place: Place, read: Callable[[], Any]) -> Any:
        """The result of `read`; None, and a problem, if the recording is unreadable."""
        label = place.segment.label
        try:
            return read()
        except npz.Refused as fault:
            self._damage[problem.refused(label, f"step {place.step}: {fault}", place.step)] = None
        except (ValueError, MemoryError) as fault:
            why = str(fault) or "it needs too much memory"
            self._damage[problem.recording_damaged(label, place.step, place.phase, why)] = None
        except OSError as fault:
            why = fault.strerror or str(fault)
            self._damage[problem.recording_damaged(label, place.step, place.phase, why)] = None
        return None

    def _warn(self, place: Place) -> stored.Warn:
        def warn(name: str, why: str) -> None:
            quantity, layer = stored.entry_key(name) or (name, "(all)")
            found = problem.array_damaged(
                place.segment.label, place.step, place.phase, quantity, layer, why
            )
            self._damage[found] = None

        return warn

    def facts(self, place: Place) -> dict[str, Any]:
        """Step, phase, time, verdict and notes of a recording; of a damaged one step and phase only."""
        entry = self.directory(place).get(stored.FACTS)
        found = None
        if entry is not None:
            found = self._guarded(
                place, lambda: stored.read_facts(place.segment.content(place, entry))
            )
        return found or {"step": place.step, "phase": place.phase, "time": float("nan")}

    @cached_property
    def outlines(self) -> tuple[Recording, ...]:
        """All recordings without measurements; facts are those of the lowest rank."""
        ranks = [tuple(place.segment.name.rank for place in group) for group in self._groups]
        return tuple(
            Recording(rank=of[0], ranks=of, **self.facts(group[0]))
            for group, of in zip(self._groups, ranks, strict=True)
        )

    def _recording(self, place: Place) -> Recording | None:
        found: Recording | None = self._guarded(
            place, lambda: place.segment.recording(place, self._warn(place))
        )
        return found

    def recordings(
        self, group: Sequence[Place], rank: int | None, lenient: bool = False
    ) -> list[Recording]:
        """The whole recordings of one step, one per rank. RunUnreadable where none is left and not `lenient`."""
        kept = [place for place in group if rank is None or place.segment.name.rank == rank]
        found = [self._recording(place) for place in kept]
        readable = [recording for recording in found if recording is not None]
        if not readable and not lenient:
            of = f"of step {group[0].step}{'' if rank is None else f' by rank {rank}'}"
            if not kept:
                by = ", ".join(str(place.segment.name.rank) for place in group)
                raise RunUnreadable(
                    f"There is no recording {of}.", f"Rank {by} recorded that step."
                )
            raise RunUnreadable(
                f"The recording {of} cannot be read.",
                "Use the recordings around it; `rnndiag verify` says what is damaged.",
            )
        return readable

    def series(
        self,
        quantity: str,
        layer: str,
        steps: Iterable[int] | slice | None,
        rank: int | None,
        phase: str,
    ) -> Series | None:
        """One quantity of one layer over the recordings that have it; None where none has."""
        name = stored.entry_name(quantity, layer)
        wanted = _step_filter(steps)
        read: list[tuple[Sequence[Place], list[Measurement]]] = []
        for group in self._groups:
            if group[0].phase != phase or not wanted(group[0].step):
                continue
            found = [
                m
                for place in group
                if rank is None or place.segment.name.rank == rank
                if (m := self._measurement(place, name)) is not None
            ]
            if found:
                read.append((group, found))
        if not read:
            return None
        measured, at, over = self._alike(name, read)
        aligned = align(measured)
        first = measured[0]
        how = POOLING[pool_of(quantity)] if max(over) > 1 else ""
        return Series(
            quantity,
            aligned.values,
            ("step", *aligned.dims),
            first.unit,
            first.scale,
            layer,
            aligned.coordinates,
            steps=np.asarray(at, np.int64),
            lengths=aligned.lengths,
            ranks=np.asarray(over, np.int64),
            phase=phase,
            pooling=how,
        )

    def _alike(
        self, name: str, read: Sequence[tuple[Sequence[Place], list[Measurement]]]
    ) -> tuple[list[Measurement], list[int], list[int]]:
        """Pooled measurements, their steps and how many ranks each has.

        Arrays of another form than the registry's, or than most of the series, are left out and named: side by side
        with the others they would leave none of them with labels.
        """
        first = read[0][1][0]
        if all(
            m.dims == first.dims and m.coordinates.keys() == first.coordinates.keys()
            for _, found in read
            for m in found
        ):
            over = [len(found) for _, found in read]
            return [pooled(found) for _, found in read], [g[0].step for g, _ in read], over
        forms = Counter(_form(m) for _, found in read for m in found)
        usual = max(forms, key=lambda form: (form[1], forms[form]))
        measured, at, over = [], [], []
        for group, found in read:
            kept = [m for m in found if _form(m) == usual or m.name not in QUANTITIES]
            if len(kept) < len(found):
                shape = found[0].values.shape
                self._warn(group[0])(name, f"its shape {shape} has not the dims {usual[0]}")
            if kept:
                measured.append(pooled(kept))
                at.append(group[0].step)
                over.append(len(kept))
        return measured, at, over

    def _measurement(self, place: Place, name: str) -> Measurement | None:
        entry = self.directory(place).get(name)
        if entry is None:
            return None
        segment = place.segment
        try:
            labels = self._labels_of(place)
            values = npz.array(segment.content(place, entry))
            if values.dtype.kind == "c" and stored.entry_key(name)[0] in QUANTITIES:  # type: ignore[index]
                raise ValueError("it holds complex numbers, which no registered quantity does")
            return segment.decoder.measurement(name, values, labels)
        except (ValueError, OSError, MemoryError) as fault:
            self._warn(place)(name, str(fault) or "it needs too much memory")
            return None

    def _labels_of(self, place: Place) -> stored.Labels:
        """The labels stored with a recording."""
        found = self._labels.get(place)
        if found is not None:
            return found
        entry = self.directory(place).get(stored.LABELS)
        if entry is None:
            return stored.Labels({}, {})
        text, key = place.segment.content(place, entry), entry[1:]  # size and checksum
        found = self._distinct_labels.get(key)
        if found is None:
            found = stored.read_labels(text)
            if self._label_bytes + entry[1] > LABEL_BYTES:
                return found
            self._label_bytes += entry[1]
            self._distinct_labels[key] = found
        self._labels[place] = found
        return found

    def over_layers(self, found: Sequence[Series]) -> Series:
        """Several layers as one: a first dim `layer`, steps that any of them has, NaN where one has none."""
        steps = np.unique(np.concatenate([series.steps for series in found]))
        spread = [_on_steps(series, steps) for series in found]
        aligned = align(
            [
                Measurement(s.name, s.values, s.dims, s.unit, s.scale, s.layer, s.coordinates)
                for s in spread
            ]
        )
        layers = tuple(series.layer for series in found)
        return replace(
            found[0],
            values=aligned.values,
            dims=("layer", *aligned.dims),
            coordinates={"layer": layers, **aligned.coordinates},
            steps=steps,
            lengths={dim: np.stack([s.lengths[dim] for s in spread]) for dim in spread[0].lengths},
            ranks=np.stack([s.ranks for s in spread]),
        )


def _form(m: Measurement) -> tuple[tuple[str, ...], bool]:
    """Dims of a measurement, and whether its dims and labels are those in the registry."""
    return m.dims, fits_registry(m.name, m.dims, m.coordinates)


def _on_steps(series: Series, steps: np.ndarray) -> Series:
    rows = np.searchsorted(steps, series.steps)
    if rows.size == steps.size:
        return series
    kind = series.values.dtype if series.values.dtype.kind in "fc" else np.float64
    values = np.full((steps.size, *series.values.shape[1:]), np.nan, kind)
    values[rows] = series.values
    counts = {dim: np.zeros(steps.size, np.int64) for dim in (*series.lengths, "")}
    for dim, given in (*series.lengths.items(), ("", series.ranks)):
        counts[dim][rows] = given
    return replace(series, values=values, steps=steps, ranks=counts.pop(""), lengths=counts)


def _choice(steps: tuple[int, ...] | slice | None) -> object:
    """A choice of steps as a hashable key; slices are not hashable before Python 3.12."""
    return (steps.start, steps.stop, steps.step) if isinstance(steps, slice) else steps


def _step_filter(steps: Iterable[int] | slice | None) -> Callable[[int], bool]:
    if steps is None:
        return lambda step: True
    if isinstance(steps, slice):
        low, high, stride = steps.start, steps.stop, steps.step or 1
        return lambda step: (
            (low is None or step >= low)
            and (high is None or step <= high)
            and (step - (low or 0)) % stride == 0
        )
    kept = {int(step) for step in steps}
    return kept.__contains__
