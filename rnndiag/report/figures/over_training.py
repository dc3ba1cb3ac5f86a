"""F2: the credit profile of every recording over training steps, with the reach as a line."""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import LN10, Context, finite
from rnndiag.report.decimate import extent, shown_lags, thin_matrix
from rnndiag.report.figure_data import Axis, FigureData, Line, Matrix, Panel, Table
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.ticks import number
from rnndiag.store.measurement import Series

DECADES = 12


@figure("F2", "Over training", "Did the reach grow or shrink during training?")
def make(context: Context) -> FigureData:
    """All profiles of the lead layer as one matrix."""
    layer = context.lead
    series = context.profiles(layer) if layer else None
    if series is None:
        return absent(context.nothing("credit_profile", layer))
    if series.steps.size < 2:
        return absent("One recording only: how the reach moves shows from the second recording on.")
    profile = _profiles(series)
    steps, reaches, decays = context.reaches(layer)
    known = finite(profile)
    high = float(np.ceil(known.max())) if known.size else 0.0
    low = max(high - DECADES, float(np.floor(known.min()))) if known.size else -1.0
    count = profile.shape[1]
    bright = np.flatnonzero((profile >= low).any(0))
    profile = profile[:, : shown_lags(count, int(bright[-1]) if bright.size else 0)]
    lags = profile.shape[1]
    left_out = (
        f" Beyond lag {lags - 1} every recording lies below the colours." if lags < count else ""
    )
    values, block = thin_matrix(profile.T)
    reach_now = np.array([float(r) if r.reached else np.nan for r in reaches])
    across, x = _axis_of(steps, block[1])
    panel = Panel(
        across,
        Axis("lag", *extent(lags, block[0])),
        lines=(Line(x, reach_now, "reach", "second"),),
        matrices=(
            Matrix(
                values,
                low,
                min(high, low + 2 * DECADES) if high > low else low + 1,
                label="credit relative to lag 0",
                block=block,
            ),
        ),
    )
    bad = [int(s) for s, row in zip(steps, profile, strict=True) if np.isposinf(row).any()]
    return FigureData(
        _finding(steps, reach_now, layer),
        "Each column is one recording, lag 0 at the bottom; bright is much credit. The line is the reach."
        + left_out,
        (panel,),
        Table(
            ("step", "reach", "decay per step"),
            tuple(
                (str(s), r.text, d.text)
                for s, r, d in _chosen(list(zip(steps, reaches, decays, strict=True)))
            ),
            (0, 1, 2),
        ),
        layer=layer,
        warnings=(f"Not finite at step {', '.join(map(str, bad[:5]))}.",) if bad else (),
    )


def _profiles(series: Series) -> np.ndarray:
    """log10 of the credit (recordings, lags); +inf if the credit is not finite, NaN for lags that were not measured."""
    profile = np.asarray(series.sel(profile_stat="profile").values, float) / LN10
    lengths = np.asarray(series.lengths.get("lag", np.full(len(profile), profile.shape[1])))
    for row, length in zip(profile, lengths, strict=True):
        row[:length] = np.where(np.isnan(row[:length]), np.inf, row[:length])
    return profile


FEW = 3
"""With fewer recordings than this each is a column with its own name: on an axis of steps columns would be too wide."""


def _axis_of(steps: np.ndarray, block: int) -> tuple[Axis, np.ndarray]:
    """The axis of steps. Steps at uneven distances are placed side by side, each with its own label."""
    apart = np.diff(steps)
    if steps.size >= FEW and (apart == apart[0]).all():
        first, every = float(steps[0]), float(apart[0])
        limits = extent(steps.size, block, first, every)
        return Axis("training step", *limits, first=first, every=every), steps.astype(float)
    names = tuple(str(int(step)) for step in steps)
    across = Axis("training step (one column a recording)", *extent(steps.size, block), names=names)
    return across, np.arange(steps.size, dtype=float)


def _chosen(rows: list[tuple[object, object, object]], most: int = 24) -> list:  # type: ignore[type-arg]
    every = max(1, -(-len(rows) // most))
    return rows[::every]


def _finding(steps: np.ndarray, reach: np.ndarray, layer: str) -> str:
    known = np.flatnonzero(np.isfinite(reach))
    if known.size < 2:
        return f"The reach of {layer} is not known at two recordings or more."
    first, last = float(reach[known[0]]), float(reach[known[-1]])
    quarter = reach[known[-max(2, known.size // 4) :]]
    change = last / first - 1 if first else 0.0
    way = "held" if abs(change) < 0.1 else "grew" if change > 0 else "shrank"
    words = f"The reach {way} from {number(first)} to {number(last)} steps"
    span = f" between step {int(steps[known[0]])} and step {int(steps[known[-1]])}."
    still = np.ptp(quarter) <= 0.1 * max(1e-12, float(np.median(quarter)))
    return words + span + (" Over the last quarter it held." if still and way != "held" else "")
