"""Where a run comes from, made fit to be written down: plain JSON, without secrets, of a bounded size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rnndiag.store.limits import JSON_BYTES
from rnndiag.store.redact import redact
from rnndiag.store.text import plain, to_json

_LARGEST = JSON_BYTES // 2


def prepared(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance as it is stored. Where it is too large, its largest entries give way to a word on their size."""
    told: dict[str, Any] = redact(plain(provenance))
    sizes = {key: len(to_json(entry)) for key, entry in told.items()}
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if sum(sizes.values()) <= _LARGEST:
            break
        told[key] = f"[left out: {sizes[key]} bytes are too many]"
        sizes[key] = len(told[key])
    return told
