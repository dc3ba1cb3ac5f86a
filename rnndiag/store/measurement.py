"""A measurement: an array whose dims have names, with a unit and a scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import numpy as np

from rnndiag.errors import BadArgument
from rnndiag.store.quantities import FIXED_COORDINATES, MODEL, QUANTITIES, Scale
from rnndiag.store.text import html_table

STORED_DTYPES = frozenset(
    [np.dtype(bool)]
    + [np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)]
    + [np.dtype(code) for code in ("f2", "f4", "f8", "c8", "c16")]
)
"""The dtypes that a run can hold: numbers of a fixed size, never objects or strings."""


def narrowed(values: np.ndarray) -> np.ndarray:
    """Float64 values as float32 unless a finite entry would overflow or underflow; other dtypes unchanged."""
    if values.dtype != np.float64 or not values.size:
        return values.astype(np.float32) if values.dtype == np.float64 else values
    size = np.abs(values[np.isfinite(values)])
    limits = np.finfo(np.float32)
    if np.any(size > limits.max) or np.any((size < limits.tiny) & (size > 0)):
        return values
    return values.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Measurement:
    """One quantity of one layer: `values` with one name per axis in `dims`.

    `coordinates` holds labels for the dims that have them (`parameter`, `gate`, `stat`, ...); the other dims count
    0, 1, 2, ... Values of scale `log` are natural logarithms, and the log of exact zero is -inf.
    """

    name: str
    values: np.ndarray
    dims: tuple[str, ...] = ()
    unit: str = "1"
    scale: Scale = "linear"
    layer: str = MODEL
    coordinates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if values.dtype.newbyteorder("=") not in STORED_DTYPES:
            raise BadArgument(
                f"{self.name} of {self.layer} has dtype {values.dtype}, which a run cannot hold.",
                "Convert it to bool, an integer, a float or a complex number of at most 8 bytes a part.",
            )
        dims = tuple(self.dims)
        if len(dims) != values.ndim or len(set(dims)) != len(dims):
            raise BadArgument(
                f"{self.name} of {self.layer} has shape {values.shape} but dims {dims}.",
                "Give one distinct name for each axis.",
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "dims", dims)
        object.__setattr__(self, "coordinates", self._labelled(values.shape))

    def _labelled(self, shape: tuple[int, ...]) -> dict[str, tuple[str, ...]]:
        labels = {dim: tuple(given) for dim, given in self.coordinates.items()}
        for dim, length in zip(self.dims, shape, strict=True):
            fixed = FIXED_COORDINATES.get(dim)
            if dim not in labels and fixed is not None and len(fixed) == length:
                labels[dim] = fixed
        for dim, given in labels.items():
            if dim not in self.dims or len(given) != shape[self.dims.index(dim)]:
                raise BadArgument(
                    f"{self.name} of {self.layer} has {len(given)} labels for dim {dim!r}, "
                    f"and its shape is {dict(zip(self.dims, shape, strict=True))}.",
                    "Give one label for each entry of the dim.",
                )
        return labels

    @classmethod
    def of(
        cls,
        name: str,
        values: Any,
        layer: str = MODEL,
        coordinates: Mapping[str, Sequence[str]] | None = None,
        keep_dtype: bool = False,
    ) -> Measurement:
        """A measurement of a registered quantity: dims, unit and scale come from the registry.

        Float64 is stored as float32 where that keeps every entry finite and normal (`keep_dtype=True`: as it is).
        """
        quantity = QUANTITIES.get(name)
        if quantity is None:
            raise BadArgument(
                f"{name!r} is not a registered quantity.",
                "Add a row to rnndiag/store/quantities.py, or give dims, unit and scale to Measurement().",
            )
        array = np.asarray(values)
        labels = {dim: tuple(given) for dim, given in (coordinates or {}).items()}
        return cls(
            name,
            array if keep_dtype else narrowed(array),
            quantity.dims,
            quantity.unit,
            quantity.scale,
            layer,
            labels,
        )

    def _with(self, **changes: Any) -> Any:
        """A copy with the fields `changes`, without the validation that `dataclasses.replace` would repeat: the caller
        guarantees that values, dims and labels fit together."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, **changes)
        return made

    @property
    def sizes(self) -> dict[str, int]:
        """Length of every dim."""
        return dict(zip(self.dims, self.values.shape, strict=True))

    def positions(self, dim: str) -> np.ndarray:
        """Coordinates along a dim: its labels if they are numbers, else 0, 1, 2, ..."""
        labels = self.coordinates.get(dim)
        if labels is not None:
            try:
                return np.asarray([float(label) for label in labels])
            except ValueError:
                pass
        return np.arange(self.sizes[dim])

    def index(self, dim: str, label: str | int) -> int:
        """Position of `label` along `dim`; along a dim without labels, `label` is the position."""
        if dim not in self.dims:
            raise BadArgument(f"{self.name} has no dim {dim!r}.", f"It has {', '.join(self.dims)}.")
        labels = self.coordinates.get(dim)
        if isinstance(label, str):
            if labels is None or label not in labels:
                raise BadArgument(
                    f"{self.name} of {self.layer} has no {dim} {label!r}.",
                    f"It has {', '.join(labels) if labels else 'no labels there'}.",
                )
            return labels.index(label)
        size = self.sizes[dim]
        if not -size <= int(label) < size:
            raise BadArgument(
                f"{self.name} of {self.layer} has no {dim} {label}.",
                f"It has {size} of them, from 0.",
            )
        return int(label)

    def sel(self, **labels: str | int) -> Measurement:
        """Select one entry along some dims, which are removed: `sel(profile_stat="q50", lag=3)`."""
        result = self
        for dim, label in labels.items():
            result = result._take(dim, result.index(dim, label))
        return result

    def _take(self, dim: str, position: int) -> Measurement:
        axis = self.dims.index(dim)
        found: Measurement = self._with(
            values=np.take(self.values, position, axis=axis),
            dims=self.dims[:axis] + self.dims[axis + 1 :],
            coordinates={name: given for name, given in self.coordinates.items() if name != dim},
        )
        return found

    def __repr__(self) -> str:
        shape = ", ".join(f"{dim} {size}" for dim, size in self.sizes.items()) or "one number"
        return f"<{self.name} of {self.layer}: {shape}; {self.unit}, {self.scale}>"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the meaning, and the range of the coordinates along each dim."""
        known = QUANTITIES.get(self.name)
        rows = [] if known is None else [("meaning", known.meaning)]
        rows += [("dims", ", ".join(f"{dim} {size}" for dim, size in self.sizes.items()) or "none")]
        finite = self.values[np.isfinite(self.values)] if self.values.dtype.kind in "fiu" else None
        if finite is not None and finite.size:
            rows.append(("values", f"{finite.min():.4g} to {finite.max():.4g}"))
            if finite.size < self.values.size:
                rows.append(
                    ("not finite", f"{self.values.size - finite.size} of {self.values.size}")
                )
        return html_table(f"{self.name} of {self.layer} ({self.unit}, {self.scale})", (), rows)


_OF_ONE = fields(Measurement)


@dataclass(frozen=True, eq=False, repr=False)
class Series(Measurement):
    """A measurement over recordings: the first dim is `step` (or `layer`, then `step`).

    Recordings of different lengths are aligned by their dims and padded with NaN. `lengths[dim]` says how much of each
    dim is valid at each step; `ranks` over how many ranks each step was pooled.
    """

    steps: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    lengths: Mapping[str, np.ndarray] = field(default_factory=dict)
    ranks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    phase: str = "train"
    pooling: str = ""

    def positions(self, dim: str) -> np.ndarray:
        """Coordinates along a dim; along `step` the training steps."""
        return self.steps if dim == "step" else super().positions(dim)

    def index(self, dim: str, label: str | int) -> int:
        """Position of `label` along `dim`; along `step` the label is the training step."""
        if dim != "step":
            return super().index(dim, label)
        found = np.flatnonzero(self.steps == int(label))
        if not found.size:
            raise BadArgument(
                f"{self.name} of {self.layer} has no recording at step {label}.",
                f"It has {self.steps.size} recordings, steps {_span(self.steps)}.",
            )
        return int(found[-1])

    def _take(self, dim: str, position: int) -> Measurement:
        if dim == "step":
            whole = object.__new__(Measurement)
            whole.__dict__.update({one.name: getattr(self, one.name) for one in _OF_ONE})
            return whole._take(dim, position)
        lengths = {name: n for name, n in self.lengths.items() if name != dim}
        ranks = self.ranks
        if dim == "layer":
            lengths = {name: n[position] for name, n in lengths.items()}
            ranks = ranks[position]
        taken: Series = cast(Series, super()._take(dim, position))._with(
            lengths=lengths, ranks=ranks
        )
        return taken

    @property
    def padded(self) -> bool:
        """Whether some recording is shorter than another, or lacks a label that another has."""
        sizes = zip(self.dims[1:], self.values.shape[1:], strict=True)
        return any((self.lengths[dim] != size).any() for dim, size in sizes)

    def at_rows(self, rows: np.ndarray) -> Series:
        """Some of the recordings, chosen by a mask (n,) over the first dim, `step`."""
        taken: Series = self._with(
            values=self.values[rows],
            steps=self.steps[rows],
            ranks=self.ranks[rows],
            lengths={dim: lengths[rows] for dim, lengths in self.lengths.items()},
        )
        return taken

    def valid(self, position: int) -> Measurement:
        """The recording at `position` along the first dim, `step`, without its padding."""
        taken = self._take("step", position)
        for dim, lengths in self.lengths.items():
            if dim in taken.dims and dim not in taken.coordinates:
                axis = taken.dims.index(dim)
                length = int(lengths[position])
                if length < taken.values.shape[axis]:
                    kept = np.take(taken.values, np.arange(length), axis=axis)
                    taken = taken._with(values=kept)
        return taken


def _span(steps: np.ndarray) -> str:
    return f"{steps.min()} to {steps.max()}" if steps.size else "none"
