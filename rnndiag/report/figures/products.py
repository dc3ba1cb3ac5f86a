"""F5: singular values of Jacobian products over lag, compared with the textbook's bound and estimate."""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import LN10, Context, finite
from rnndiag.report.figure_data import Axis, Band, FigureData, Line, Mark, Panel, Table, Tone
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.ticks import number, ten_to
from rnndiag.store.measurement import Measurement

DECADES = 24


@figure(
    "F5", "Jacobian products", "Do Jacobian products shrink or grow?", newest=("product_spectral",)
)
def make(context: Context) -> FigureData:
    """Gain of Φ(t, t-d) over d: largest, median and smallest singular value, the bound, and ρ(W_hh)^d."""
    layer = context.lead
    spectral = context.last("product_spectral", layer) if layer else None
    if spectral is None or not spectral.values.size:
        return absent(context.nothing("product_spectral", layer))
    if not finite(np.asarray(spectral.values)).size:
        zero = np.isneginf(spectral.values).all()
        how = "exactly zero" if zero else "not finite"
        return absent(f"The Jacobian products of {layer} are {how} at every lag.")
    lags = spectral.positions("lag").astype(float)
    middle = _row(spectral, "q50")
    bound = context.last("product_bound", layer)
    lines = _lines(context, layer, lags, middle, bound)
    known = np.concatenate([finite(np.log10(line.y)) for line in lines])
    low, high = _limits(known)
    panel = Panel(
        Axis(
            "lag d: number of Jacobians in the product",
            float(lags[0]),
            float(max(lags[-1], lags[0] + 1)),
        ),
        Axis("gain", low, high, "log10"),
        lines=tuple(lines),
        bands=(
            Band(
                lags,
                _gain(_row(spectral, "q05")),
                _gain(_row(spectral, "q95")),
                "90 % of samples",
                0.2,
            ),
        ),
        marks=(Mark("y", 1.0, "no change", "limit"),),
        notes=_cut(known, low),
    )
    return FigureData(
        _finding(layer, lags, middle, bound),
        "Above 1 a perturbation of the state has grown after d steps, below 1 it has shrunk. The bound of the textbook "
        "is shown where it holds (Elman cells): how far it lies above the measured curve is how loose it is.",
        (panel,),
        _table(lags, spectral, context.last("product_median", layer), bound),
        layer=layer,
    )


def _lines(
    context: Context, layer: str, lags: np.ndarray, middle: np.ndarray, bound: Measurement | None
) -> list[Line]:
    """The measured singular values, the textbook's bound, and ρ(W_hh)^d."""
    lines = [Line(lags, _gain(middle), "largest singular value", "main")]
    inner: tuple[tuple[str, str, Tone], ...] = (
        ("product_median", "median singular value", "third"),
        ("product_smallest", "smallest singular value", "second"),
    )
    for quantity, label, tone in inner:
        beside = context.last(quantity, layer)
        if beside is not None and finite(np.asarray(beside.values)).size:
            lines.append(
                Line(beside.positions("lag").astype(float), _gain(_row(beside, "q50")), label, tone)
            )
    if bound is not None and finite(np.asarray(bound.values)).size:
        lines.append(
            Line(
                bound.positions("lag").astype(float),
                _gain(_row(bound, "q50")),
                "bound Π σ(D)σ(W)",
                "bound",
            )
        )
    radius = context.last("spectral_radius", layer)
    if radius is not None and float(np.nanmax(radius.values)) > 0 and radius.values.size == 1:
        slope = np.log(float(np.nanmax(radius.values)))
        lines.append(Line(lags, _gain(lags * slope), "ρ(W_hh)^d", "baseline"))
    return lines


def _row(found: Measurement, stat: str) -> np.ndarray:
    return np.asarray(found.sel(stat=stat).values, float)


def _gain(log: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        gain = np.exp(np.clip(log, -690, 690))
    return np.where(np.isfinite(log), gain, np.nan)


def _limits(known: np.ndarray) -> tuple[float, float]:
    if not known.size:
        return 1e-3, 10.0
    high = max(1.0, float(np.ceil(known.max() + 0.1)))
    low = min(-1.0, float(np.floor(known.min())))
    return ten_to(max(low, high - DECADES)), ten_to(high)


def _cut(known: np.ndarray, low: float) -> tuple[str, ...]:
    below = known < np.log10(low)
    return ("curves below the axis: not drawn",) if below.any() else ()


def _finding(layer: str, lags: np.ndarray, middle: np.ndarray, bound: Measurement | None) -> str:
    known = np.flatnonzero(np.isfinite(middle) & (lags > 0))
    if not known.size:
        return f"The products of {layer} are exactly zero."
    last = known[-1]
    rate = float(np.exp(middle[last] / lags[last]))
    way = "shrink" if rate < 0.995 else "grow" if rate > 1.005 else "keep their size"
    words = (
        f"Products of {layer} {way}: the largest singular value changes by ×{number(rate)} a step"
    )
    words += f" over {lags[last]:.0f} steps."
    if bound is not None:
        edge = _row(bound, "q50")
        if edge.size > last and np.isfinite(edge[last]):
            loose = (edge[last] - middle[last]) / LN10
            words += f" The textbook's bound lies {loose:.1f} decades above it there."
    return words


def _table(
    lags: np.ndarray, spectral: Measurement, median: Measurement | None, bound: Measurement | None
) -> Table:
    chosen = sorted({0, *(2**k for k in range(14) if 2**k < lags.size), lags.size - 1})

    def cell(found: Measurement | None, at: int) -> str:
        if found is None:
            return "–"
        row = _row(found, "q50")
        return number(float(row[at] / LN10)) if at < row.size and np.isfinite(row[at]) else "–"

    rows = tuple(
        (f"{lags[k]:.0f}", cell(spectral, k), cell(median, k), cell(bound, k)) for k in chosen
    )
    return Table(("lag", "log10 largest", "log10 median", "log10 bound"), rows, (0, 1, 2, 3))
