"""Detects parallel scans in a graph: recurrences over a whole sequence in one operation, without steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from rnndiag.engine.segments.marks import graph_behind

SCANS = ("Cumsum", "Logcumsumexp", "Cumprod")
"""Names of graph nodes that associative recurrences consist of."""
MOST_NODES = 20_000

_WHY = (
    "the loss goes through {}{}: a parallel scan has no step whose state could be followed. Run it in chunks with "
    "rnndiag.carry on the state at their boundaries, or run its loop in the steps that are recorded"
)


def scan_in(nodes: Iterable[Any], names: Mapping[int, str]) -> str:
    """The parallel scan in a graph and what to do about it, as text; empty if there is none.

    nodes: where the graph begins. names: id of a parameter -> its name.
    """
    for node in islice(graph_behind(nodes), MOST_NODES):
        kind = node.name().partition("Backward")[0]
        if kind in SCANS:
            return _WHY.format(kind.lower(), _of(node, names))
    return ""


def _of(scan: Any, names: Mapping[int, str]) -> str:
    """The module of the nearest parameter behind a scan."""
    for node in graph_behind([scan]):
        name = names.get(id(getattr(node, "variable", None)), "")
        if name:
            return f" in or behind {name.rpartition('.')[0] or name}"
    return ""
