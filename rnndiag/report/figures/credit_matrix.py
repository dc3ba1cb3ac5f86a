"""F3: which losses reach which states: the credit matrix of chosen recordings, on one colour scale."""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import LN10, Context, finite
from rnndiag.report.decimate import thin_matrix
from rnndiag.report.figure_data import Axis, FigureData, Matrix, Panel, Table
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.ticks import number

MOST = 12
DECADES = 16
QUESTION = "Which losses reach which states?"


@figure("F3", "Credit matrix", QUESTION)
def make(context: Context) -> FigureData:
    """Rows are losses, columns are states; a many-to-one model has one row, and is told so in words."""
    layer = context.lead
    series = context.series("credit_matrix", layer) if layer else None
    if series is None:
        return absent("F3", context.nothing("credit_matrix", layer))
    chosen = _chosen(series.steps.size)
    pictures = [np.asarray(series.valid(k).values, float) / LN10 for k in chosen]
    size = max(picture.shape[0] for picture in pictures)
    rows = [np.flatnonzero(np.isfinite(picture).any(1)) for picture in pictures]
    if max(found.size for found in rows) <= 1:
        return _one_row(layer, rows[-1], pictures[-1])
    known = np.concatenate([finite(picture) for picture in pictures])
    high = float(np.ceil(known.max()))
    low = max(high - DECADES, float(np.floor(known.min())))
    matrices, cell = [], ""
    for k, picture in zip(chosen, pictures, strict=True):
        values, block = thin_matrix(_above_diagonal(picture))
        cell = "" if block == (1, 1) else f"each cell is the largest of {block[0]} x {block[1]}"
        matrices.append(
            Matrix(
                values,
                low,
                high,
                frame=f"step {int(series.steps[k])}",
                cell=cell,
                label="credit C[u, s]",
            )
        )
    names = _labels(context, layer, size)
    panel = Panel(
        Axis("state time s", 0.0, float(size), names=names),
        Axis("loss time u", 0.0, float(size), names=names),
        matrices=tuple(matrices),
        notes=(),
    )
    return FigureData(
        "F3",
        QUESTION,
        _finding(layer, rows[-1], pictures[-1]),
        "Row u, column s: how strongly the loss at time u depends on the state at time s. Above the diagonal there is "
        "no path.",
        (panel,),
        _table(pictures[-1]),
        layer=layer,
    )


def _chosen(count: int) -> list[int]:
    """First, last, and the rest evenly spread; at most MOST."""
    return sorted({int(k) for k in np.linspace(0, count - 1, min(MOST, count)).round()})[::-1]


def _above_diagonal(picture: np.ndarray) -> np.ndarray:
    """NaN where the loss lies before the state, and +inf where a value on or below the diagonal is not a number."""
    u, s = np.indices(picture.shape)
    shown = np.where(np.isnan(picture), np.inf, picture)
    return np.where(s > u, np.nan, shown)


def _labels(context: Context, layer: str, size: int) -> tuple[str, ...]:
    for outline in reversed(context.run.outlines):
        told = outline.notes.get("labels")
        found = told.get(layer) if isinstance(told, dict) else None
        if isinstance(found, list) and len(found) >= size:
            return tuple(f"{str(word)[:12]}" for word in found[:size])
    return ()


def _one_row(layer: str, rows: np.ndarray, picture: np.ndarray) -> FigureData:
    if not rows.size:
        return absent("F3", f"No loss reaches any state of {layer}.")
    u = int(rows[0])
    row = picture[u, : u + 1]
    seen = np.flatnonzero(np.isfinite(row))
    far = f"It reaches back to step {int(seen[0])}." if seen.size else ""
    words = f"Only one output of {layer} carries a loss, that at step {u}: the matrix is one row, the curve of F1. "
    return FigureData("F3", QUESTION, words + far, "", absent=words + far, layer=layer)


def _finding(layer: str, rows: np.ndarray, picture: np.ndarray) -> str:
    lead = f"{rows.size} of {picture.shape[0]} outputs of {layer} carry a loss."
    best = np.unravel_index(
        np.nanargmax(np.where(np.isfinite(picture), picture, -np.inf)), picture.shape
    )
    return f"{lead} The strongest link joins the loss at {int(best[0])} to the state at {int(best[1])}."


def _table(picture: np.ndarray) -> Table:
    rows = []
    size = picture.shape[0]
    for u in sorted({int(v) for v in np.linspace(0, size - 1, min(8, size)).round()}):
        row = picture[u, : u + 1]
        seen = np.flatnonzero(np.isfinite(row))
        if seen.size:
            rows.append(
                (
                    str(u),
                    number(float(10 ** row[-1])) if np.isfinite(row[-1]) else "0",
                    str(int(u - seen[0])),
                )
            )
    return Table(
        ("loss at", "credit of its own state", "farthest lag with any credit"),
        tuple(rows),
        (0, 1, 2),
    )
