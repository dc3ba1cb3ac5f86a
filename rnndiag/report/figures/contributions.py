"""F4: the contribution of each time step and gate to the gradient, and its alignment with the total."""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import Context, finite
from rnndiag.report.figure_data import Axis, FigureData, Line, Panel, Table, Tone
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.ticks import number, ten_to
from rnndiag.store.measurement import Measurement
from rnndiag.store.text import counted

TONES: tuple[Tone, ...] = ("main", "second", "third", "bound", "limit")
FLOOR = 1e-12


@figure(
    "F4",
    "Contributions",
    "Which time steps, which gates, make the gradient?",
    newest=("contribution_norm",),
)
def make(context: Context) -> FigureData:
    """From the newest recording of the lead layer: |g_t| per parameter and per gate, adjoint norms, alignment."""
    layer = context.lead
    norms = context.last("contribution_norm", layer) if layer else None
    if norms is None:
        return absent(context.nothing("contribution_norm", layer))
    if not finite(np.asarray(norms.values)).size:
        return absent(f"No contribution to the parameters of {layer} is a finite number.")
    panels = [_logarithmic(norms, "parameter", "Contribution of each parameter", "|g_t|")]
    gates = context.last("gate_contribution_norm", layer)
    if gates is not None and gates.sizes["gate"] > 1:
        panels.append(_logarithmic(gates, "gate", "Contribution of each gate", "|g_t|"))
    parts = context.last("adjoint_part_norm", layer)
    if parts is not None and parts.sizes["part"] > 1:
        panels.append(_logarithmic(parts, "part", "Adjoint of each part of the state", "|δ_t|"))
    alignment = context.last("contribution_alignment", layer)
    if alignment is not None:
        panels.append(_plain(alignment, "Alignment with the total, W_hh"))
    return FigureData(
        _finding(norms, alignment),
        "Each curve is one parameter, gate or part of the state over time, in the order in which the layer ran. Where "
        "the alignment is negative, a step works against the total.",
        tuple(panels),
        _table(norms),
        layer=layer,
    )


def _rows(found: Measurement, dim: str) -> list[tuple[str, np.ndarray]]:
    labels = found.coordinates.get(dim, tuple(map(str, range(found.sizes[dim]))))
    values = np.moveaxis(np.asarray(found.values, float), found.dims.index(dim), 0)
    return list(zip(labels, values, strict=True))


def _time(count: int) -> Axis:
    return Axis("time step", 0.0, float(max(1, count - 1)))


def _logarithmic(found: Measurement, dim: str, title: str, label: str) -> Panel:
    rows = _rows(found, dim)[: len(TONES)]
    count = rows[0][1].size
    known = np.concatenate([row[np.isfinite(row) & (row > 0)] for _, row in rows])
    high = ten_to(np.ceil(np.log10(known.max()))) if known.size else 1.0
    low = max(high * FLOOR, ten_to(np.floor(np.log10(known.min())))) if known.size else 1e-3
    lines = tuple(
        Line(np.arange(count), np.where(row > 0, row, np.nan), name, tone)
        for (name, row), tone in zip(rows, TONES, strict=False)
    )
    zero = sum(int((row == 0).sum()) for _, row in rows)
    notes = (f"exactly zero at {counted(zero, 'point')}: not drawn",) if zero else ()
    return Panel(
        _time(count),
        Axis(label, float(low), float(max(high, low * 10)), "log10"),
        title,
        lines,
        notes=notes,
    )


def _plain(found: Measurement, title: str) -> Panel:
    labels = found.coordinates.get("parameter", ())
    index = labels.index("weight_hh") if "weight_hh" in labels else 0
    row = np.asarray(found.values, float)[index]
    return Panel(
        _time(row.size), Axis("cos(g_t, Σ g)", -1.0, 1.0), title, (Line(np.arange(row.size), row),)
    )


def _finding(norms: Measurement, alignment: Measurement | None) -> str:
    rows = dict(_rows(norms, "parameter"))
    name = "weight_hh" if "weight_hh" in rows else next(iter(rows))
    row = np.nan_to_num(rows[name])
    total = row.sum()
    if not total > 0:
        return f"No step contributes anything to {name}."
    order = np.argsort(row)[::-1]
    needed = int(np.searchsorted(np.cumsum(row[order]), 0.9 * total)) + 1
    words = f"{needed} of {row.size} steps make 90 % of the sizes |g_t| of {name}; the largest is step {int(order[0])}."
    if alignment is not None:
        aligned = _rows(alignment, "parameter")
        values = dict(aligned).get(name, aligned[0][1])
        known = finite(values)
        if known.size:
            words += f" {100 * (known < 0).mean():.0f} % of the steps pull against the total."
    return words


def _table(norms: Measurement) -> Table:
    rows = []
    for name, row in _rows(norms, "parameter"):
        known = np.nan_to_num(row)
        total = known.sum()
        if total > 0:
            late = known[known.size // 2 :].sum() / total
            cells = (
                str(int(known.argmax())),
                number(float(known.max())),
                number(float(total)),
                f"{late:.0%}",
            )
            rows.append((name, *cells))
    return Table(
        ("parameter", "largest at step", "its |g_t|", "Σ |g_t|", "share of the later half"),
        tuple(rows),
        (1, 2, 3, 4),
    )
