"""Converts text and JSON at the boundary of a run: plain when written, untrusted when read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

import numpy as np

from rnndiag.store.limits import INTEGER_DIGITS, JSON_BYTES

_LONGEST_REPR = 1000
_DEEPEST = 32


def meant(word: object, known: Iterable[str]) -> str:
    """`Did you mean 'x'? ` if a known name is similar, else empty."""
    from difflib import get_close_matches

    lower = {name.lower(): name for name in known}
    near = get_close_matches(str(word).lower(), lower, 1)
    return f"Did you mean {lower[near[0]]!r}? " if near else ""


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def size_text(size: float) -> str:
    """A size in a suitable unit: 512 B, 4.8 MB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def mapping(value: object, *path: str) -> Mapping[str, Any]:
    """The JSON object at `path` inside of an untrusted value; empty if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def plain(value: Any, depth: int = 0) -> Any:
    """The value as strict JSON can hold it: arrays become lists, non-finite floats and unknown objects text."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value) if abs(int(value)) < 10**INTEGER_DIGITS else str(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, np.bool_):
        return bool(value)
    if depth >= _DEEPEST:
        return _shortened(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), depth)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry, depth + 1) for entry in value]
    return str(value) if isinstance(value, PurePath) else _shortened(value)


def _shortened(value: Any) -> str:
    try:
        return repr(value)[:_LONGEST_REPR]
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"


def to_json(value: Any, indent: int | None = None) -> bytes:
    """ASCII JSON of a value made `plain`."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(plain(value), allow_nan=False, indent=indent, separators=separators).encode()


def _bounded_int(digits: str) -> int:
    if len(digits) > INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def from_json(data: bytes) -> dict[str, Any]:
    """Parse an untrusted JSON object; ValueError if it is too large, too deep, not JSON or not an object."""
    if len(data) > JSON_BYTES:
        raise ValueError(f"{len(data)} bytes of JSON, more than {JSON_BYTES}")
    try:
        value = json.loads(data, parse_int=_bounded_int)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("JSON that is not UTF-8") from None
    if not isinstance(value, dict):
        raise ValueError(f"JSON that is a {type(value).__name__}, not an object")
    return value


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A small table for a notebook, all of its text escaped.

    Args:
        title: The line above.
        header: Names of the columns; none: no header.
        rows: The cells, row by row.
    """

    def row(cells: Sequence[str], tag: str) -> str:
        inner = (f'<{tag} style="text-align:left">{escape(cell)}</{tag}>' for cell in cells)
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    head = row(header, "th") if header else ""
    return f"<div><small>{escape(title)}</small><table>{head}{body}</table></div>"
