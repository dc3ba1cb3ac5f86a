"""The table of layers: one row per layer, the shortest reach first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from rnndiag.errors import RunUnreadable
from rnndiag.report.context import Context
from rnndiag.report.ticks import number
from rnndiag.report.unfit import or_else
from rnndiag.stats.headline import run_window


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
"""Rows of the table; the shortest reaches come first."""


def layer_rows(context: Context) -> list[LayerRow]:
    """One row for each layer, worst first, at most MOST; then the stacks whose layers were cut together."""
    dash = ("–",) * 7
    return [
        or_else(partial(_row, context, layer), lambda fault, of=layer: LayerRow(of, *dash))  # type: ignore[misc]
        for layer in (*context.layers[:MOST], *context.stacks)
    ]


def _row(context: Context, layer: str) -> LayerRow:
    found, total = context.reach(layer), context.time_steps(layer)
    reached = (
        "–" if found is None else found.text + (f" of {total}" if found.reached and total else "")
    )
    _, _, decays = context.reaches(layer)
    last = next((d for d in reversed(decays) if d.reached), None)
    return LayerRow(
        layer,
        _cell(context, layer),
        reached,
        "–" if last is None else number(float(last)),
        _window(context, layer),
        _largest(context, "spectral_radius", layer),
        _first(context, "lyapunov_exponents", layer),
        _largest(context, "residual", layer),
    )


def _cell(context: Context, layer: str) -> str:
    if layer in context.stacks:
        return f"{len(context.stacks[layer])} layers, cut together"
    model = context.run.provenance.get("model")
    layers = model.get("layers") if isinstance(model, dict) else None
    facts = layers.get(layer) if isinstance(layers, dict) else None
    if not isinstance(facts, dict):
        return "–"
    hidden = facts.get("hidden")
    return f"{facts.get('cell', '–')}" + (f", {hidden} units" if hidden else "")


def _window(context: Context, layer: str) -> str:
    if ("window_bias", layer) not in context.run:
        return "–"
    try:
        window = run_window(context.run, layer=layer)
    except RunUnreadable:
        return "–"
    return f"{window.steps:.0f}" if window.reached else "–"


def _largest(context: Context, quantity: str, layer: str) -> str:
    found = context.last(quantity, layer)
    values = np.zeros(0) if found is None else np.asarray(found.values, float)
    return number(float(np.nanmax(values))) if values.size and not np.isnan(values).all() else "–"


def _first(context: Context, quantity: str, layer: str) -> str:
    found = context.last(quantity, layer)
    return (
        "–" if found is None or not found.values.size else number(float(np.ravel(found.values)[0]))
    )
