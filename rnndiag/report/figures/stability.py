"""F8: whether the dynamics is stable: Lyapunov spectrum, eigenvalues of W_hh in the unit circle, ρ(J_t) over time."""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import Context, finite
from rnndiag.report.figure_data import Axis, Band, Dots, FigureData, Line, Mark, Panel, Table, Tone
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.ticks import number

TONES: tuple[Tone, ...] = ("main", "second", "third", "bound", "limit")


@figure(
    "F8",
    "Stability",
    "Is the dynamics stable?",
    newest=("lyapunov_exponents", "recurrent_eigenvalues", "jacobian_radius"),
)
def make(context: Context) -> FigureData:
    """The newest spectra of the lead layer; those that were not recorded are left out."""
    layer = context.lead
    panels = [
        panel
        for build in (_exponents, _eigenvalues, _radius)
        if layer and (panel := build(context, layer)) is not None
    ]
    if not panels:
        return absent(context.nothing("lyapunov_exponents", layer))
    return FigureData(
        _finding(context, layer),
        "An exponent above 0 is a direction in which two nearby runs of the net part (chaos); below 0, they meet. "
        "Eigenvalues outside of the circle can grow; the net's nonlinearity may still hold them. ρ(J_t) is the same "
        "question asked at each time step.",
        tuple(panels),
        _table(context, layer),
        layer=layer,
    )


def _values(context: Context, layer: str, stat: str) -> np.ndarray | None:
    found = context.last("lyapunov_exponents", layer)
    return None if found is None else np.asarray(found.sel(part_stat=stat).values, float)


def _exponents(context: Context, layer: str) -> Panel | None:
    value = _values(context, layer, "value")
    if value is None or not finite(value).size:
        return None
    error = _values(context, layer, "se_sequences")
    spread = (
        np.nan_to_num(error, posinf=0.0, neginf=0.0) if error is not None else np.zeros_like(value)
    )
    index = np.arange(1, value.size + 1, dtype=float)
    known = finite(value)
    margin = 0.1 * max(1e-3, float(np.ptp(known))) + float(spread.max(initial=0.0))
    low, high = min(0.0, float(known.min())) - margin, max(0.0, float(known.max())) + margin
    low, high = max(-1e300, low), min(1e300, high)
    return Panel(
        Axis("exponent i", 1.0, float(max(2, value.size))),
        Axis("λ_i per step", low, high),
        "Lyapunov spectrum",
        (Line(index, value, "λ_i", "main", dots=value.size <= 40),),
        (Band(index, value - 2 * spread, value + 2 * spread, "± 2 standard errors", 0.25),),
        (Mark("y", 0.0, "neither grows nor shrinks", "limit"),),
    )


def _eigenvalues(context: Context, layer: str) -> Panel | None:
    found = context.last("recurrent_eigenvalues", layer)
    if found is None:
        return None
    blocks = found.coordinates.get("block", tuple(map(str, range(found.sizes["block"]))))
    values = np.asarray(found.values, float)
    largest = float(np.abs(finite(values)).max(initial=0.0))
    edge = min(1e300, max(1.15, 1.1 * largest))
    clouds = tuple(
        Dots(block[:, 0], block[:, 1], name, tone)
        for name, block, tone in zip(blocks, values, TONES, strict=False)
    )
    return Panel(
        Axis("real part", -edge, edge),
        Axis("imaginary part", -edge, edge),
        "Eigenvalues of W_hh",
        dots=clouds,
        circle=True,
        shape="square",
    )


def _radius(context: Context, layer: str) -> Panel | None:
    found = context.last("jacobian_radius", layer)
    if found is None or not finite(np.asarray(found.values)).size:
        return None
    rows = {name: np.asarray(found.sel(stat=name).values, float) for name in ("mean", "q05", "q95")}
    time = found.positions("time").astype(float)
    high = min(1e300, max(1.05, 1.05 * float(finite(np.asarray(found.values, float)).max())))
    return Panel(
        Axis("time step", float(time[0]), float(max(time[0] + 1, time[-1]))),
        Axis("ρ(J_t)", 0.0, high),
        "ρ(J_t) over time",
        (Line(time, rows["mean"], "mean over samples", "main"),),
        (Band(time, rows["q05"], rows["q95"], "90 % of samples", 0.25),),
        (Mark("y", 1.0, "keeps size", "limit"),),
    )


def _finding(context: Context, layer: str) -> str:
    words = []
    value, error = _values(context, layer, "value"), _values(context, layer, "se_sequences")
    if value is not None and np.isfinite(value[:1]).all() and value.size:
        first = float(value[0])
        spread = float(error[0]) if error is not None and np.isfinite(error[0]) else 0.0
        kind = (
            "chaotic"
            if first > 2 * spread + 1e-6
            else "contracting"
            if first < -2 * spread
            else "at the edge"
        )
        around = f" ± {number(spread)}" if spread else ""
        words.append(f"λ₁ of {layer} is {number(first)}{around} a step: {kind} along its own data.")
    radius = context.last("spectral_radius", layer)
    if radius is not None and finite(np.asarray(radius.values)).size:
        words.append(
            f"The largest spectral radius of W_hh's blocks is {number(float(np.nanmax(radius.values)))}."
        )
    dimension = context.last("kaplan_yorke", layer)
    if dimension is not None and np.isfinite(dimension.values).all():
        words.append(f"Kaplan-Yorke dimension: {number(float(dimension.values))}.")
    return " ".join(words) or f"The spectra of {layer} are not finite."


def _table(context: Context, layer: str) -> Table | None:
    value, error = _values(context, layer, "value"), _values(context, layer, "se_sequences")
    if value is None:
        return None
    shown = range(min(12, value.size))
    rows = tuple(
        (
            str(i + 1),
            number(float(value[i])) if np.isfinite(value[i]) else "–",
            number(float(error[i])) if error is not None and np.isfinite(error[i]) else "–",
        )
        for i in shown
    )
    return Table(("i", "λ_i", "standard error over sequences"), rows, (0, 1, 2))
