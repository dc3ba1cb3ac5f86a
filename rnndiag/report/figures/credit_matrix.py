"""F3: the credit matrix (loss by state) of chosen recordings, on one colour scale."""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import LN10, Context, finite
from rnndiag.report.decimate import extent, thin_matrix
from rnndiag.report.figure_data import Axis, FigureData, Matrix, Panel, Table
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.ticks import number, ten_to
from rnndiag.store.measurement import Series
from rnndiag.store.text import mapping

MOST = 12
DECADES = 16


@figure("F3", "Credit matrix", "Which losses reach which states?")
def make(context: Context) -> FigureData:
    """Rows are losses, columns are states. A many-to-one model has one row, and the finding says so."""
    layer = context.lead
    steps = context.steps_of("credit_matrix", layer) if layer else []
    series = context.at("credit_matrix", layer, _chosen(context, layer, steps)) if steps else None
    if series is None:
        return absent(context.nothing("credit_matrix", layer))
    pictures = [np.asarray(series.valid(k).values, float) / LN10 for k in range(series.steps.size)]
    size = max(picture.shape[0] for picture in pictures)
    rows = [np.flatnonzero((picture > -np.inf).any(1)) for picture in pictures]
    if max(found.size for found in rows) <= 1:
        return _one_row(layer, rows[-1], pictures[-1], _stride(series))
    known = np.concatenate([finite(picture) for picture in pictures])
    high = float(np.ceil(known.max())) if known.size else 0.0
    low = max(high - DECADES, float(np.floor(known.min()))) if known.size else -1.0
    broken, stride = context.not_finite(layer), _stride(series)
    matrices = tuple(
        _matrix(
            _square(picture, size), low, max(high, low + 1), int(step), stride, int(step) in broken
        )
        for step, picture in zip(series.steps, pictures, strict=True)
    )
    names = _labels(context, layer, size) if stride == 1 else ()
    ends = extent(size, matrices[0].block[0] // stride, (stride - 1) / 2, stride)
    bad = [
        int(s) for s, m in zip(series.steps, matrices, strict=True) if np.isposinf(m.values).any()
    ]
    return FigureData(
        _finding(layer, rows[-1], pictures[-1], stride),
        "Row u, column s: how strongly the loss at time u depends on the state at time s. There is no path "
        "below the diagonal; pale cells above it were not sampled.",
        (
            Panel(
                Axis("state time s", *ends, names=names),
                Axis("loss time u", *ends, names=names),
                matrices=matrices,
                shape="square",
            ),
        ),
        _table(pictures[-1], stride),
        layer=layer,
        warnings=(f"Not finite at step {', '.join(map(str, bad[:5]))}.",) if bad else (),
    )


def _stride(series: Series) -> int:
    """Number of time steps per stored row; long sequences are stored in blocks."""
    at = series.positions("output")
    return max(1, int(at[1] - at[0])) if at.size > 1 else 1


def _matrix(
    picture: np.ndarray, low: float, high: float, step: int, stride: int, broken: bool
) -> Matrix:
    values, (rows, columns) = thin_matrix(_below_diagonal(picture, broken))
    block = (rows * stride, columns * stride)
    return Matrix(values, low, high, label="credit C[u, s]", frame=f"step {step}", block=block)


def _square(picture: np.ndarray, size: int) -> np.ndarray:
    """The matrix of a shorter sequence, padded with exact zeros, because all frames share their axes."""
    whole = np.full((size, size), -np.inf)
    whole[: picture.shape[0], : picture.shape[1]] = picture
    return whole


def _chosen(context: Context, layer: str, steps: list[int]) -> list[int]:
    """At most MOST recordings: the first, the last, the one with the shortest reach, and others evenly spread."""
    if len(steps) <= MOST:
        return steps
    at, reaches, _ = context.reaches(layer)
    reached = {int(s): float(r) for s, r in zip(at, reaches, strict=True) if r.reached}
    worst = min((s for s in steps if s in reached), key=lambda s: reached[s], default=steps[0])
    spread = np.linspace(0, len(steps) - 1, MOST - 1).round().astype(int)
    return sorted({worst, *(steps[k] for k in spread)})


def _below_diagonal(picture: np.ndarray, broken: bool) -> np.ndarray:
    """The matrix with NaN where the loss is before the state or was not sampled, and +inf where it is not finite."""
    u, s = np.indices(picture.shape)
    shown = np.where(np.isnan(picture), np.inf, picture) if broken else picture
    return np.where(s > u, np.nan, shown)


def _labels(context: Context, layer: str, size: int) -> tuple[str, ...]:
    for outline in reversed(context.run.outlines):
        found = mapping(outline.notes, "labels").get(layer)
        if isinstance(found, list) and len(found) >= size:
            return tuple(f"{str(word)[:12]}" for word in found[:size])
    return ()


def _one_row(layer: str, rows: np.ndarray, picture: np.ndarray, stride: int) -> FigureData:
    if not rows.size:
        return absent(f"No loss reaches any state of {layer}.")
    u = int(rows[0])
    row = picture[u, : u + 1]
    seen = np.flatnonzero(np.isfinite(row))
    far = f"It reaches back to step {int(seen[0]) * stride}." if seen.size else ""
    where = f"Only one output of {layer} carries a loss, that at step {u * stride}"
    words = f"{where}: the matrix is one row, the curve of the first figure. "
    return FigureData(words + far, "", absent=words + far, layer=layer)


def _finding(layer: str, rows: np.ndarray, picture: np.ndarray, stride: int) -> str:
    what = "outputs" if stride == 1 else f"stretches of {stride} outputs"
    lead = f"{rows.size} of {picture.shape[0]} {what} of {layer} carry a loss."
    if not np.isfinite(picture).any():
        return f"{lead} Nothing in it is a finite number above zero."
    best = np.unravel_index(
        np.nanargmax(np.where(np.isfinite(picture), picture, -np.inf)), picture.shape
    )
    return (
        f"{lead} The strongest link joins the loss at {stride * int(best[0])} to the state at "
        f"{stride * int(best[1])}."
    )


def _table(picture: np.ndarray, stride: int) -> Table:
    rows = []
    size = picture.shape[0]
    for u in sorted({int(v) for v in np.linspace(0, size - 1, min(8, size)).round()}):
        row = picture[u, : u + 1]
        seen = np.flatnonzero(np.isfinite(row))
        if seen.size:
            rows.append(
                (
                    str(u * stride),
                    number(ten_to(row[-1])) if np.isfinite(row[-1]) else "0",
                    str(int(u - seen[0]) * stride),
                )
            )
    return Table(
        ("loss at", "credit of its own state", "farthest lag with any credit"),
        tuple(rows),
        (0, 1, 2),
    )
