"""The properties that two runs must share to be comparable: T, layers, dtype, window in use, versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rnndiag.health.numbers import NotRecorded, RunNumbers
from rnndiag.store.quantities import MODEL
from rnndiag.store.reader import StoredRun
from rnndiag.store.text import mapping

Fingerprint = Mapping[str, Any]
"""Field -> plain JSON value. Fields of a layer or a version are named `T.rnn.l0`, `versions.torch`."""

_VERSIONS = ("rnndiag", "torch")


def fingerprint(run: StoredRun) -> dict[str, Any]:
    """The fingerprint of a run, from its provenance and its arrays."""
    numbers = RunNumbers(run)
    provenance = run.provenance
    fields: dict[str, Any] = {"layers": sorted(_layer(numbers, layer) for layer in numbers.layers)}
    for layer in numbers.layers:
        fields[f"T.{layer}"] = _time_steps(numbers, layer)
    fields["dtype"] = str(mapping(provenance, "trainer").get("precision") or "unknown")
    fields["window"] = _window(numbers)
    for package in _VERSIONS:
        version = mapping(provenance, "versions").get(package)
        fields[f"versions.{package}"] = ".".join(str(version or "unknown").split(".")[:2])
    return fields


def differences(
    old: Fingerprint, new: Fingerprint, but: tuple[str, ...] = ()
) -> list[tuple[str, Any, Any]]:
    """(field, old, new) for each field that differs. `but` names fields (or their first part) that may differ."""
    found = []
    for name in dict.fromkeys((*old, *new)):
        free = any(
            name == other or name.startswith(f"{other}.") or name.endswith(f".{other}")
            for other in but
        )
        if not free and old.get(name) != new.get(name):
            found.append((name, old.get(name, "absent"), new.get(name, "absent")))
    return found


def _layer(numbers: RunNumbers, layer: str) -> str:
    facts = numbers.of(layer).facts
    return f"{layer}: {facts.get('cell', '?')} of {facts.get('hidden', '?')}"


def _time_steps(numbers: RunNumbers, layer: str) -> int | str:
    """T if it is the same in every recording, else `varies`."""
    lengths = numbers.time_lengths(layer)
    if lengths is None:
        return "unknown"
    return int(lengths[0]) if len(np.unique(lengths)) == 1 else "varies"


def _window(numbers: RunNumbers) -> int | str:
    try:
        found = numbers.of(MODEL).get("window_in_use").values
    except NotRecorded:
        return "unknown"
    known = np.unique(found[np.isfinite(found)])
    return int(known[0]) if len(known) == 1 else "varies"
