"""The table of layers: one row per layer, the shortest reach first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from rnndiag.errors import RunUnreadable
from rnndiag.report.context import Context, span
from rnndiag.report.strip import last_decay
from rnndiag.report.ticks import number
from rnndiag.report.unfit import or_else
from rnndiag.stats.headline import run_window
from rnndiag.store.text import mapping


@dataclass(frozen=True)
class LayerRow:
    """The headline numbers of one layer as text."""

    name: str
    cell: str
    reach: str
    decay: str
    window: str
    radius: str
    exponent: str
    proof: str


MOST = 250
"""Most rows of the table; the shortest reaches come first."""


def layer_rows(context: Context) -> list[LayerRow]:
    """One row for each layer, worst first, at most MOST; then the stacks whose layers were cut together."""
    dash = ("–",) * 7
    return [
        or_else(partial(_row, context, layer), lambda fault, of=layer: LayerRow(of, *dash))  # type: ignore[misc]
        for layer in (*context.layers[:MOST], *context.stacks)
    ]


def _row(context: Context, layer: str) -> LayerRow:
    found, total = context.reach(layer), context.time_steps(layer)
    reached = "–"
    if found is not None:
        of = f" of {total}" if found.reached and total else ""
        reached = f"{found.text}{of}{_mark(context.when('credit_profile', layer))}"
    last = last_decay(context, layer)
    return LayerRow(
        layer,
        _cell(context, layer),
        reached,
        "–" if last is None else number(last[0]) + _mark(last[1]),
        _window(context, layer),
        _largest(context, "spectral_radius", layer),
        _first(context, "lyapunov_exponents", layer),
        _largest(context, "residual", layer),
    )


def _cell(context: Context, layer: str) -> str:
    if layer in context.stacks:
        return f"{len(context.stacks[layer])} layers, cut together"
    facts = mapping(context.run.provenance, "model", "layers", layer)
    hidden = facts.get("hidden")
    return f"{facts.get('cell', '–')}" + (f", {hidden} units" if hidden else "")


def _window(context: Context, layer: str) -> str:
    if ("window_bias", layer) not in context.run:
        return "–"
    try:
        window = run_window(context.run, layer=layer)
    except RunUnreadable:
        return "–"
    if not window.reached:
        return "–"
    return f"{window.steps:.0f}{_mark(context.when('window_bias', layer))}"


def _largest(context: Context, quantity: str, layer: str) -> str:
    found = context.last(quantity, layer)
    values = np.zeros(0) if found is None else np.asarray(found.values, float)
    if not values.size or np.isnan(values).all():
        return "–"
    return number(float(np.nanmax(values))) + _mark(context.when_last(quantity, layer))


def _first(context: Context, quantity: str, layer: str) -> str:
    found = context.last(quantity, layer)
    if found is None or not found.values.size:
        return "–"
    return number(float(np.ravel(found.values)[0])) + _mark(context.when_last(quantity, layer))


def _mark(when: str) -> str:
    """A mark with the step of a number that is older than the judged recordings; empty for others."""
    return f" ({when})" if when.endswith("old") else ""


def layer_dates(context: Context) -> str:
    """The recordings that the numbers of the table are from, as text."""
    judged = context.run.judged().tolist()
    if not judged:
        return ""
    return (
        f"Reach and window: medians over the judged recordings, {span(judged)}. The others: the last recording that "
        f"holds them, up to step {judged[-1]}. An older number says its step."
    )
