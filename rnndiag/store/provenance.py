"""Prepares the provenance of a run for storage: plain JSON, without secrets, of limited size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rnndiag.store.limits import JSON_BYTES
from rnndiag.store.redact import redact
from rnndiag.store.text import plain, to_json

_LARGEST = JSON_BYTES // 2


def prepared(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance as stored. If it is too large, its largest entries are replaced by a note of their size."""
    told: dict[str, Any] = redact(plain(provenance))
    sizes = {key: len(to_json(entry)) for key, entry in told.items()}
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if sum(sizes.values()) <= _LARGEST:
            break
        told[key] = f"[left out: {sizes[key]} bytes are too many]"
        sizes[key] = len(told[key])
    return told
