"""F10: which layer: the credit profiles of all layers as one picture, the shortest reach first."""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import LN10, Context, finite
from rnndiag.report.decimate import thin_matrix
from rnndiag.report.figure_data import Axis, FigureData, Line, Matrix, Panel, Table
from rnndiag.report.figures.figure import absent, figure

QUESTION = "Which layer?"
DECADES = 12
WORST = 5


@figure("F10", "By layer", QUESTION)
def make(context: Context) -> FigureData:
    """One row a layer."""
    known = [layer for layer in context.layers if ("credit_profile", layer) in context.run]
    if not known:
        return absent("F10", context.nothing("credit_profile"))
    if len(known) == 1:
        return absent(
            "F10", f"One recurrent layer only, {known[0]}: its profile is the curve of F1."
        )
    rows = []
    for layer in known:
        newest = context.last("credit_profile", layer)
        assert newest is not None
        rows.append(np.asarray(newest.sel(profile_stat="profile").values, float) / LN10)
    size = max(row.size for row in rows)
    picture = np.full((len(rows), size), np.nan)
    for line, row in zip(picture, rows, strict=True):
        line[: row.size] = np.where(np.isnan(row), np.inf, row)
    numbers = finite(picture)
    high = float(np.ceil(numbers.max())) if numbers.size else 0.0
    low = max(high - DECADES, float(np.floor(numbers.min()))) if numbers.size else -1.0
    reaches = [context.reach(layer) for layer in known]
    along = np.array([float(r) if r is not None and r.reached else np.nan for r in reaches])
    values, block = thin_matrix(picture[::-1])
    panel = Panel(
        Axis("lag", 0.0, float(size)),
        Axis("layer", -0.5, len(known) - 0.5, names=tuple(reversed(known))),
        lines=(
            Line(along[::-1], np.arange(len(known), dtype=float), "reach", "second", dots=True),
        ),
        matrices=(
            Matrix(
                values,
                low,
                max(high, low + 1),
                label="credit relative to lag 0",
                cell=""
                if block == (1, 1)
                else f"each cell is the largest of {block[0]} x {block[1]}",
            ),
        ),
    )
    sentences = [
        f"{layer}: {r.text + ' steps' if r is not None and r.reached else 'not reached'}"
        for layer, r in list(zip(known, reaches, strict=True))[:WORST]
    ]
    return FigureData(
        "F10",
        QUESTION,
        "Shortest reach first. " + "; ".join(sentences) + ".",
        "Each row is one layer, lag 0 at the left; bright is much credit. The dots are the reach.",
        (panel,),
        Table(
            ("layer", "reach", "T"),
            tuple(
                (layer, "–" if r is None else r.text, str(context.time_steps(layer) or "–"))
                for layer, r in zip(known, reaches, strict=True)
            ),
            (1, 2),
        ),
    )
