"""Uniform access to recorded quantities by layer and step, for a run or a single recording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rnndiag.stats.need.memory_need import MemoryNeed
from rnndiag.stats.need.stored import FACT, GROUP, PART, USE, need_of, needs_in
from rnndiag.store.layer_names import is_stack, recurrence
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import MODEL, QUANTITIES
from rnndiag.store.reader import StoredRun
from rnndiag.store.recording import Recording
from rnndiag.store.text import mapping


@dataclass(frozen=True)
class Row:
    """One measurement of one recording."""

    step: int
    layer: str
    values: np.ndarray
    labels: Mapping[str, tuple[str, ...]]

    @property
    def number(self) -> float:
        """The value of a measurement that is a single number."""
        return float(self.values.reshape(-1)[0]) if self.values.size else float("nan")


def _row(step: int, one: Measurement) -> Iterator[Row]:
    """The measurement as a row, unless it is empty."""
    if one.values.size:
        values = np.asarray(np.real(one.values), np.float64)
        yield Row(step, one.layer, values, one.coordinates)


class Recorded:
    """A run or a recording, read by quantity and recurrence."""

    def __init__(self, source: StoredRun | Recording) -> None:
        self.source = source

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """The provenance of the run; empty for a single recording."""
        return self.source.provenance if isinstance(self.source, StoredRun) else {}

    @cached_property
    def outlines(self) -> tuple[Recording, ...]:
        """Recordings of the training phase without their measurements."""
        if isinstance(self.source, Recording):
            return (self.source,)
        return tuple(one for one in self.source.outlines if one.phase != "end")

    @property
    def steps_made(self) -> int:
        """Number of optimizer steps at the end of the fit; 0 if not recorded."""
        if isinstance(self.source, Recording):
            return 0
        return max((one.step for one in self.source.outlines if one.phase == "end"), default=0)

    @cached_property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Recurrence (`rnn.l0`, or a stack) -> the names of its runs, one per call."""
        found: dict[str, list[str]] = {}
        for name in self._all_names:
            if name != MODEL and "@" not in name:  # of several backward passes the first counts
                found.setdefault(recurrence(name), []).append(name)
        return {name: tuple(dict.fromkeys(calls)) for name, calls in found.items()}

    @cached_property
    def _all_names(self) -> tuple[str, ...]:
        if isinstance(self.source, Recording):
            return tuple(dict.fromkeys(m.layer for m in self.source.measurements))
        return tuple(dict.fromkeys(layer for _, layer in self.source.collector.keys))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of single layers in one direction."""
        return tuple(name for name in self.names if not is_stack(name))

    @cached_property
    def stacks(self) -> dict[str, tuple[str, ...]]:
        """Names of stacks with their layers, lowest first."""
        if isinstance(self.source, StoredRun):
            return self.source.stacks
        return {str(k): tuple(v) for k, v in mapping(self.source.notes, "stacks").items()}

    def rows(self, quantity: str, layer: str = MODEL) -> tuple[Row, ...]:
        """All measurements of a quantity of one recurrence, over its calls, sorted by step."""
        calls = (MODEL,) if layer == MODEL else self.names.get(layer, ())
        found = [row for call in calls for row in self._of(quantity, call)]
        return tuple(sorted(found, key=lambda row: row.step))

    def _of(self, quantity: str, name: str) -> Iterator[Row]:
        dims = QUANTITIES[quantity].dims  # a damaged run may hold anything
        if isinstance(self.source, Recording):
            for one in self.source.measurements:
                if (one.name, one.layer) == (quantity, name) and one.dims == dims:
                    yield from _row(self.source.step, one)
            return
        series = self.source.find(quantity, name) if (quantity, name) in self.source else None
        if series is None or series.dims[1:] != dims:
            return
        if series.padded:
            for position, step in enumerate(series.steps.tolist()):
                yield from _row(step, series.valid(position))
        elif series.values.size:
            values = np.asarray(np.real(series.values), np.float64)
            for step, of_step in zip(series.steps.tolist(), values, strict=True):
                yield Row(step, name, of_step, series.coordinates)

    @cached_property
    def needs(self) -> tuple[MemoryNeed, ...]:
        """Results of `memory_need`, one per layer; empty if it was not run."""
        if isinstance(self.source, Recording):
            return needs_in([self.source])
        found = []
        for layer in self.source.layers_of(FACT):
            series = {name: self.source.find(name, layer) for name in (GROUP, PART, USE, FACT)}
            parts = {
                name: one.valid(one.steps.size - 1)
                for name, one in series.items()
                if one is not None and one.steps.size
            }
            if len(parts) == len(series):
                found.append(need_of(layer, parts))
        return tuple(found)

    def history(self, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a per-step scalar, merged over the ring buffers of all recordings, sorted, each step
        once."""
        if isinstance(self.source, Recording):
            return np.zeros(0, np.int64), np.zeros(0)
        steps, values = [], []
        for phase in self.source.phases:
            at, found = (
                self.source.collector.series(name, MODEL, None, None, phase)
                for name in ("history_step", quantity)
            )
            if at is None or found is None or at.values.shape != found.values.shape:
                continue
            known = np.isfinite(at.values)
            steps.append(at.values[known].astype(np.int64))
            values.append(np.asarray(found.values[known], np.float64))
        if not steps:
            return np.zeros(0, np.int64), np.zeros(0)
        whole, first = np.unique(np.concatenate(steps), return_index=True)
        return whole, np.concatenate(values)[first]
