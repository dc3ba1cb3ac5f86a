"""Names of time steps and sequences of a batch, from the user's `labels=` function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rnndiag.engine.layer_run import LayerRun

LONGEST = 200
"""Longest label in characters; a list of labels is cut at `MOST` entries."""
MOST = 20_000


def label_notes(
    labels: Callable[[Any], Any], batch: Any, runs: Iterable[LayerRun]
) -> dict[str, Any]:
    """The notes `labels` (layer -> names along its time axis) and `sequences` (names of the batch's sequences).

    `labels(batch)` gives the names of the time steps of the first sequence, or a mapping with those under "time" and
    names of the sequences under "sequence". A layer that runs backward in time has them in its own order. Layers of
    another length get none.
    """
    given = labels(batch)
    if given is None:
        return {}
    table = given if isinstance(given, Mapping) else {"time": given}
    notes: dict[str, Any] = {}
    if table.get("time") is not None:
        names = _names(table["time"])
        found = {run.name: _along(run, names) for run in runs}
        notes["labels"] = {name: along for name, along in found.items() if along}
    if table.get("sequence") is not None:
        notes["sequences"] = _names(table["sequence"])
    return notes


def _names(given: Iterable[Any]) -> list[str]:
    return [str(name)[:LONGEST] for name, _ in zip(given, range(MOST), strict=False)]


def _along(run: LayerRun, names: list[str]) -> list[str]:
    length = run.T if run.lengths is None else int(run.lengths[0])
    if len(names) < length:
        return []
    names = names[:length]
    return names[::-1] if run.reverse else names
