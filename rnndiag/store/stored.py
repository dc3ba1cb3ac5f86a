"""A recording as entries of an npz file: facts, labels, then one array per quantity and layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast
from urllib.parse import quote, unquote

import numpy as np

from rnndiag.store import npz
from rnndiag.store.limits import ARRAYS, JSON_BYTES
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import FIXED_COORDINATES, QUANTITIES
from rnndiag.store.recording import VERDICTS, Recording
from rnndiag.store.text import from_json, mapping, to_json

FACTS, LABELS = "meta.json", "labels.json"
_FACTS = frozenset(
    ("step", "phase", "rank", "time", "epoch", "batch", "verdict", "reasons", "notes")
)
TAKEN_DIMS = frozenset(("step", "layer"))
"""Names of dims that readers add (recordings, layers): a stored array must not use them."""

_FORMS_KEPT = 4096
_NAMES_KEPT = 2 * ARRAYS
_NO_LABELS: Mapping[str, tuple[str, ...]] = {}

Key = tuple[str, str]
"""(quantity, layer)."""


def encoded_phase(phase: str) -> str:
    """A phase encoded for use in a member's name."""
    return quote(phase, safe="", errors="surrogatepass")


def decoded_phase(text: str) -> str:
    """The phase decoded from a member's name."""
    try:
        return unquote(text, errors="surrogatepass")
    except UnicodeDecodeError:
        return text


@lru_cache(maxsize=_NAMES_KEPT)
def entry_name(quantity: str, layer: str) -> str:
    """`credit_profile@rnn.l0.npy`; every other character is percent-encoded, so a name holds no path or escape code."""
    return (
        "@".join(quote(part, safe="", errors="surrogatepass") for part in (quantity, layer))
        + ".npy"
    )


@lru_cache(maxsize=_NAMES_KEPT)
def entry_key(name: str) -> Key | None:
    """(quantity, layer) of an entry's name; None if the name is not one that `entry_name` makes."""
    quantity, at, layer = name.removesuffix(".npy").partition("@")
    if not at or not name.endswith(".npy"):
        return None
    try:
        key = unquote(quantity, errors="surrogatepass"), unquote(layer, errors="surrogatepass")
    except UnicodeDecodeError:
        return None
    return key if entry_name(*key) == name else None


def pack(recording: Recording) -> bytes:
    """A recording as the bytes of an npz file."""
    arrays: dict[str, Measurement] = {}
    for measurement in recording.measurements:
        taken = TAKEN_DIMS & {*measurement.dims}
        if taken:
            raise npz.Refused(
                f"{measurement.name} of {measurement.layer} has a dim {min(taken)!r}, which the reader adds"
            )
        name = entry_name(measurement.name, measurement.layer)
        if name in arrays:
            raise npz.Refused(f"{measurement.name} of {measurement.layer} is given twice")
        arrays[name] = measurement
    facts = {
        "step": recording.step,
        "phase": recording.phase,
        "rank": recording.rank,
        "time": recording.time,
        "epoch": recording.epoch,
        "batch": recording.batch,
        "verdict": recording.verdict,
        "reasons": recording.reasons,
        "notes": recording.notes,
    }
    texts = {
        FACTS: to_json(facts),
        LABELS: _labels(tuple(_form(*given) for given in arrays.items())),
    }
    for name, text in texts.items():
        if len(text) > JSON_BYTES:
            raise npz.Refused(f"{len(text)} bytes of {name} cannot be stored, at most {JSON_BYTES}")
    entries: list[tuple[str, tuple[bytes, ...]]] = [(name, (text,)) for name, text in texts.items()]
    entries += [(name, npz.array_parts(m.values)) for name, m in arrays.items()]
    return npz.pack(entries)


Form = tuple[str, str, tuple[str, ...], str, str, tuple[tuple[str, tuple[str, ...]], ...]]
"""Everything that `labels.json` needs of a measurement: all but its values and layer."""


def _form(name: str, m: Measurement) -> Form:
    return name, m.name, m.dims, m.unit, m.scale, tuple(m.coordinates.items())


@lru_cache(maxsize=256)
def _labels(forms: tuple[Form, ...]) -> bytes:
    """The `labels.json` of arrays: labels and deviations from the registry. Cached: the same in most recordings."""
    lists: dict[tuple[str, ...], int] = {}
    of: dict[str, dict[str, int]] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, quantity, dims, unit, scale, coordinates in forms:
        labels = {
            dim: lists.setdefault(given, len(lists))
            for dim, given in coordinates
            if FIXED_COORDINATES.get(dim) != given
        }
        if labels:
            of[name] = labels
        known = QUANTITIES.get(quantity)
        if known is None or (known.dims, known.unit, known.scale) != (dims, unit, scale):
            described[name] = {"dims": dims, "unit": unit, "scale": scale}
    return to_json({"lists": list(lists), "of": of, "described": described})


@dataclass(frozen=True)
class Labels:
    """The parsed labels of a recording."""

    of: Mapping[str, Mapping[str, tuple[str, ...]]]
    described: Mapping[str, tuple[tuple[str, ...], str, str]]


def read_labels(text: bytes) -> Labels:
    """Parse labels from JSON; cached, since most recordings of a run hold the same bytes."""
    return _read_once(text) if len(text) <= LABELS_ONCE_BYTES else _parsed_labels(text)


def _parsed_labels(text: bytes) -> Labels:
    given = from_json(text)
    try:
        lists = [tuple(str(label) for label in entry) for entry in given["lists"]]
        # Most arrays have the labels of another one: they share one mapping.
        shared: dict[tuple[Any, ...], dict[str, tuple[str, ...]]] = {}
        of = {}
        for name, dims in given["of"].items():
            key = tuple(dims.items())
            if key not in shared:
                shared[key] = {str(dim): lists[int(place)] for dim, place in key}
            of[name] = shared[key]
        described = {
            name: (tuple(map(str, d["dims"])), str(d["unit"]), _scale(d["scale"]))
            for name, d in given["described"].items()
        }
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as fault:
        raise ValueError(f"labels of another form ({type(fault).__name__} {fault})") from None
    return Labels(of, described)


LABELS_ONCE_BYTES = 64 * 2**10
"""Larger label files are parsed each time instead of cached, which bounds the memory of the cache."""
_read_once = lru_cache(maxsize=64)(_parsed_labels)


def _scale(text: Any) -> str:
    return "log" if text == "log" else "linear"


def read_facts(text: bytes) -> dict[str, Any]:
    """The facts of a recording with checked types, as arguments of Recording.

    Facts that only a later version knows are kept among the notes.
    """
    given = from_json(text)
    unknown = {key: entry for key, entry in given.items() if key not in _FACTS}
    step, time, verdict = given.get("step"), given.get("time"), given.get("verdict")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**63:
        raise ValueError(f"the step {step!r}")
    return {
        "step": step,
        "phase": str(given.get("phase", "train")),
        "time": float(time) if isinstance(time, (int, float)) else float("nan"),
        "epoch": _integer(given.get("epoch")),
        "batch": _integer(given.get("batch")),
        "verdict": verdict if verdict in VERDICTS else "unverified",
        "reasons": {str(k): str(v) for k, v in mapping(given.get("reasons")).items()},
        "notes": {**unknown, **mapping(given.get("notes"))},
    }


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class Decoder:
    """Turns arrays into measurements by the registry stored in their segment."""

    def __init__(self, registry: Mapping[str, Any], coordinates: Mapping[str, Any]) -> None:
        self._rows: dict[str, tuple[tuple[str, ...], str, str]] = {
            q.name: (q.dims, q.unit, q.scale) for q in QUANTITIES.values()
        }
        self._fixed = dict(FIXED_COORDINATES)
        self._forms: dict[object, tuple[Any, ...]] = {}  # the same for most layers
        for name, row in mapping(registry).items():
            if isinstance(row, dict) and isinstance(row.get("dims"), list):
                dims = tuple(map(str, row["dims"]))
                self._rows[str(name)] = (dims, str(row.get("unit", "1")), _scale(row.get("scale")))
        for dim, given in mapping(coordinates).items():
            if isinstance(given, list):
                self._fixed[str(dim)] = tuple(map(str, given))

    def measurement(self, name: str, values: np.ndarray, labels: Labels) -> Measurement:
        """The measurement of one array; dims that match no known quantity are called dim0, dim1, ..."""
        quantity, layer = cast(Key, entry_key(name))
        given, described = labels.of.get(name, _NO_LABELS), labels.described.get(name)
        key = (quantity, values.shape, id(given), described)
        if key not in self._forms:
            if len(self._forms) == _FORMS_KEPT:
                self._forms.clear()
            # with `given`, so that no other mapping gets its id
            self._forms[key] = (*self._form(quantity, values.shape, given, described), given)
        dims, unit, scale, coordinates, _ = self._forms[key]
        made = object.__new__(Measurement)
        made.__dict__.update(
            name=quantity,
            values=values,
            dims=dims,
            unit=unit,
            scale=scale,
            layer=layer,
            coordinates=coordinates,
        )
        return made

    def _form(
        self,
        quantity: str,
        shape: tuple[int, ...],
        given: Mapping[str, tuple[str, ...]],
        described: tuple[tuple[str, ...], str, str] | None,
    ) -> tuple[tuple[str, ...], str, str, dict[str, tuple[str, ...]]]:
        """Dims, unit, scale and labels of an array of this shape."""
        dims, unit, scale = described or self._rows.get(quantity, ((), "1", "linear"))
        if len(dims) != len(shape) or len({*dims, *TAKEN_DIMS}) != len(dims) + len(TAKEN_DIMS):
            dims = tuple(f"dim{axis}" for axis in range(len(shape)))
        coordinates: dict[str, tuple[str, ...]] = {}
        for dim, size in zip(dims, shape, strict=True):
            for found in (given.get(dim), self._fixed.get(dim)):
                if found is not None and len(found) == size:
                    coordinates[dim] = found
                    break
        return dims, unit, scale, coordinates


Warn = Callable[[str, str], None]
"""warn(name, fault): called for every entry that was skipped."""


def _checked(view: memoryview, name: str, entry: npz.Entry, warn: Warn) -> Any:
    """The parsed content of one entry; None if it is not an array of this format, or damaged (reported to `warn`)."""
    try:
        found = npz.content(view[entry[0] : entry[0] + entry[1]], entry)
        if name == FACTS:
            return read_facts(bytes(found))
        if name == LABELS:
            return read_labels(bytes(found))
        return npz.array(found) if entry_key(name) is not None else None
    except ValueError as fault:
        if name == FACTS:
            raise npz.Damaged(f"its step and phase cannot be read: {fault}") from None
        warn(name, str(fault))
        return None


def unpack(data: bytes, decoder: Decoder, rank: int, warn: Warn) -> Recording:
    """Parse a recording; damaged arrays are skipped and reported to `warn`."""
    view = memoryview(data)
    tail = bytes(view[-npz.TAIL_BYTES :])
    start, end = npz.directory_span(tail, len(data))
    entries = npz.directory(bytes(view[start:end]), tail, start)
    facts: dict[str, Any] | None = None
    labels = Labels({}, {})
    measurements: list[Measurement] = []
    for name, entry in entries.items():
        found = _checked(view, name, entry, warn)
        if found is None:
            continue
        if name == FACTS:
            facts = found
        elif name == LABELS:
            labels = found
        else:
            measurements.append(decoder.measurement(name, found, labels))
    if facts is None:
        raise npz.Damaged("its step and phase cannot be read")
    return Recording(rank=rank, measurements=tuple(measurements), **facts)
