"""The recorded numbers of one layer as arrays over recordings, selected by label, for use in rules."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rnndiag.errors import RunUnreadable
from rnndiag.store.quantities import MODEL, fits_registry
from rnndiag.store.reader import StoredRun
from rnndiag.store.text import mapping

_END = "end"
"""The phase of the last recording, made of what the recorder still held when training ended."""

TIMED = ("valid_samples", "adjoint_norm", "contribution_norm", "nonfinite_states")
"""Quantities with a time dim, from which the length of the sequences can be read."""


class NotRecorded(Exception):
    """The numbers that a rule needs are missing in the judged recordings; the text says which."""


class DoesNotApply(NotRecorded):
    """The rule's number is undefined for this layer: a layer of one gate has no largest gate, one without credit no
    reach."""


@dataclass(frozen=True)
class StackNumbers:
    """One quantity over recordings: `steps` (n,), `values` (n, ...), `coordinates` of the labelled dims in `dims`."""

    steps: np.ndarray
    values: np.ndarray
    dims: tuple[str, ...]
    coordinates: Mapping[str, tuple[str, ...]]
    lengths: Mapping[str, np.ndarray] = field(default_factory=dict)

    def pick(self, dim: str, label: str) -> StackNumbers:
        """Select one label of a dim, which is removed."""
        labels = self.coordinates.get(dim, ())
        if dim not in self.dims or label not in labels:
            raise NotRecorded(f"no {dim} is called {label}")
        axis = self.dims.index(dim)
        rest = self.dims[:axis] + self.dims[axis + 1 :]
        return StackNumbers(
            self.steps, self.values.take(labels.index(label), axis + 1), rest, self.coordinates
        )

    def positions(self, dim: str) -> np.ndarray:
        """Coordinates along a dim: its labels if they are numbers, else 0, 1, 2, ..."""
        size = self.values.shape[1 + self.dims.index(dim)]
        try:
            labels = [float(label) for label in self.coordinates.get(dim, ())]
        except ValueError:
            labels = []
        return np.array(labels) if len(labels) == size else np.arange(float(size))


class RunNumbers:
    """Access to a run's stored numbers by quantity and layer; each is read once and cached.

    With `steps`, only the recordings at these training steps are used.
    """

    def __init__(self, run: StoredRun, steps: np.ndarray | None = None) -> None:
        self.run = run
        self.all_steps = np.asarray(run.steps, dtype=np.int64)
        self.steps = self.all_steps if steps is None else steps
        self._stacks: dict[tuple[str, str], StackNumbers | None] = {}
        self._layers: dict[str, LayerNumbers] = {}

    def last(self, count: int) -> RunNumbers:
        """The same run restricted to its last `count` recordings."""
        return RunNumbers(self.run, self.all_steps[-count:] if count else self.all_steps[:0])

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers, without the whole model."""
        return tuple(layer for layer in self.run.layers if layer != MODEL)

    def of(self, layer: str) -> LayerNumbers:
        """The numbers of one layer."""
        if layer not in self._layers:
            self._layers[layer] = LayerNumbers(self, layer)
        return self._layers[layer]

    def stack(self, quantity: str, layer: str) -> StackNumbers:
        """One quantity of one layer over the recordings that hold it."""
        key = quantity, layer
        if key not in self._stacks:
            self._stacks[key] = self._read(quantity, layer)
        found = self._stacks[key]
        if found is None or len(found.steps) == 0:
            where = " by every rank" if len(self.run.ranks) > 1 else ""
            raise NotRecorded(f"{quantity} was not recorded for {layer}{where}")
        return found

    def lengths(self, quantity: str, layer: str, dim: str) -> np.ndarray:
        """Length of a dim at each recording."""
        stack = self.stack(quantity, layer)
        found = stack.lengths.get(dim)
        if found is not None:
            return np.asarray(found)
        return np.full(len(stack.steps), stack.values.shape[1 + stack.dims.index(dim)])

    def time_lengths(self, layer: str) -> np.ndarray | None:
        """T of each recording, from the first quantity with a time dim; None if there is none."""
        for quantity in TIMED:
            if (quantity, layer) in self.run:
                with suppress(NotRecorded):
                    return self.lengths(quantity, layer, "time")
        return None

    @cached_property
    def _ranks(self) -> dict[int, int]:
        """Training step -> number of ranks that recorded it."""
        main = self.run.phases[:1]
        return {g[0].step: len(g) for g in self.run.groups if g[0].phase in main}

    def _read(self, quantity: str, layer: str) -> StackNumbers | None:
        if (quantity, layer) not in self.run:
            return None
        steps = None if len(self.steps) == len(self.all_steps) else self.steps.tolist()
        try:
            found = self.run.find(quantity, layer, steps)
        except RunUnreadable:
            return None
        if found is None or not fits_registry(quantity, found.dims[1:], found.coordinates):
            return None  # ill-shaped, or of a version of rnndiag that stored it in another form
        if found.phase not in (*self.run.phases[:1], _END):
            return None  # of recordings that no check judges
        whole: np.ndarray | slice = slice(None)
        if layer != MODEL:  # a number that some ranks could not measure is unknown for the batch
            kept = found.ranks >= [self._ranks.get(step, 1) for step in found.steps.tolist()]
            whole = slice(None) if kept.all() else kept
        return StackNumbers(
            np.asarray(found.steps, dtype=np.int64)[whole],
            np.asarray(found.values, dtype=np.float64)[whole],
            tuple(found.dims[1:]),
            found.coordinates,
            {dim: np.asarray(length)[whole] for dim, length in found.lengths.items()},
        )


@dataclass(frozen=True)
class LayerNumbers:
    """The input of a rule: the numbers of one layer (or of the whole model)."""

    whole: RunNumbers
    layer: str

    def get(self, quantity: str) -> StackNumbers:
        """One quantity; raises NotRecorded if the run has none."""
        return self.whole.stack(quantity, self.layer)

    def ever(self, quantity: str) -> StackNumbers:
        """One quantity over all recordings, also those not judged: for quantities measured in few recordings."""
        return RunNumbers(self.whole.run).stack(quantity, self.layer)

    def of_model(self, quantity: str) -> StackNumbers:
        """One quantity of the whole model."""
        return self.whole.stack(quantity, MODEL)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """Facts on this layer in the provenance: cell, T, hidden, inputs, directions."""
        return mapping(self.whole.run.provenance, "model", "layers", self.layer)

    def lags(self, steps: np.ndarray) -> list[int | None]:
        """T at each of these recordings: the number of lags, measured or not."""
        try:
            found = self.get("valid_samples")
        except NotRecorded:
            return [None] * len(steps)
        lengths = self.whole.lengths("valid_samples", self.layer, "time")
        known = dict(zip(found.steps.tolist(), lengths.tolist(), strict=True))
        return [known.get(step) for step in steps.tolist()]

    @cached_property
    def time_steps(self) -> int | None:
        """T: the longest sequence among the recordings."""
        lengths = self.whole.time_lengths(self.layer)
        if lengths is not None:
            return int(np.max(lengths))
        stated = self.facts.get("T")
        return stated if isinstance(stated, int) else None

    @cached_property
    def steps_without_gradient(self) -> frozenset[int]:
        """Training steps at which no gradient reached the layer: all adjoints were recorded and are zero."""
        try:
            found = self.get("adjoint_norm")
        except NotRecorded:
            return frozenset()
        flat = found.values.reshape(len(found.steps), -1)
        zero = np.all((flat == 0) | np.isnan(flat), axis=1) & np.any(flat == 0, axis=1)
        return frozenset(found.steps[zero].tolist())

    def profiles(self) -> StackNumbers:
        """The credit profile (ln, by lag) at the steps where a gradient reached the layer.

        A stored profile is NaN if there was no gradient, or if it could not be computed. Only the first kind is left
        out here; the second stays as NaN and cannot be judged.
        """
        return self._profiles

    @cached_property
    def _profiles(self) -> StackNumbers:
        found = self.get("credit_profile").pick("profile_stat", "profile")
        reached = np.array(
            [int(step) not in self.steps_without_gradient for step in found.steps], dtype=bool
        )
        if not reached.any():
            raise DoesNotApply(f"no gradient of the loss reaches {self.layer}")
        return StackNumbers(
            found.steps[reached], found.values[reached], found.dims, found.coordinates, {}
        )

    @cached_property
    def cause(self) -> str:
        """Why credit is short, as named in the latest recording: decay, loss, detach, or empty."""
        for outline in reversed(self.whole.run.outlines):
            if cause := mapping(outline.notes, "cause", self.layer):
                return str(cause.get("kind", ""))
        return ""
