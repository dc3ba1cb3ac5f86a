"""F9: small multiples over training: loss, gradient norm, reach, decay, spectral radius, window, saturation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rnndiag.health.sentence_case import sentence_case
from rnndiag.report.context import Context, finite
from rnndiag.report.figure_data import Axis, FigureData, Line, Mark, Panel, Table
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.ticks import number
from rnndiag.stats.window import smallest_window
from rnndiag.store.quantities import MODEL

Curve = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Small:
    """One of the small panels: its title, the quantity it shows, and whether its axis is logarithmic."""

    title: str
    curve: Callable[[Context, str], Curve | None]
    log: bool = False
    check: str = ""
    """The check whose allowed range is shaded."""


def _model(quantity: str) -> Callable[[Context, str], Curve | None]:
    def curve(context: Context, layer: str) -> Curve | None:
        series = context.series(quantity, MODEL)
        return None if series is None else (series.steps, np.asarray(series.values, float))

    return curve


def _every_step(quantity: str, recorded: str) -> Callable[[Context, str], Curve | None]:
    """The values of all steps if the run has them, else those of the recorded steps."""

    def curve(context: Context, layer: str) -> Curve | None:
        steps, values = context.series("history_step", MODEL), context.series(quantity, MODEL)
        if steps is None or values is None:
            return _model(recorded)(context, layer)
        _, ours, theirs = np.intersect1d(steps.steps, values.steps, return_indices=True)
        at, of = (np.asarray(series.values, float) for series in (steps, values))
        width = min(at.shape[1], of.shape[1])
        x, y = at[ours, :width].ravel(), of[theirs, :width].ravel()
        known = ~np.isnan(x)
        order = np.argsort(x[known], kind="stable")
        return x[known][order], y[known][order]

    return curve


def _layer(
    quantity: str, pick: Callable[[np.ndarray], np.ndarray]
) -> Callable[[Context, str], Curve | None]:
    def curve(context: Context, layer: str) -> Curve | None:
        series = context.series(quantity, layer)
        return None if series is None else (series.steps, pick(np.asarray(series.values, float)))

    return curve


def _reach(context: Context, layer: str) -> Curve | None:
    steps, reaches, _ = context.reaches(layer)
    return (
        (steps, np.array([float(r) if r.reached else np.nan for r in reaches])) if reaches else None
    )


def _decay(context: Context, layer: str) -> Curve | None:
    steps, _, decays = context.reaches(layer)
    return (
        (steps, np.array([float(d) if d.reached else np.nan for d in decays])) if decays else None
    )


def _window(context: Context, layer: str) -> Curve | None:
    series = context.series("window_bias", layer)
    if series is None:
        return None
    at = series.positions("lag")
    return series.steps, np.array(
        [
            w.steps if (w := smallest_window(row, 0.1, at)).reached else np.nan
            for row in series.values
        ]
    )


def _largest(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.reshape(len(values), -1).max(1))


SMALL = (
    Small("Loss", _every_step("history_loss", "loss"), log=True),
    Small("Gradient norm", _every_step("history_gradient_norm", "total_gradient_norm"), log=True),
    Small("Reach (steps)", _reach, check="reach"),
    Small("Decay per step", _decay, check="decay"),
    Small("Window for 10 % bias", _window),
    Small(
        "Largest ρ of W_hh's blocks", _layer("spectral_radius", _largest), check="spectral_radius"
    ),
    Small("λ₁", _layer("lyapunov_exponents", lambda v: v[:, 0, 0]), check="lyapunov"),
    Small("Saturated gates (share)", _layer("gate_high", lambda v: v.mean(1))),
    Small("Learning rate", _every_step("history_learning_rate", "learning_rate")),
)


@figure("F9", "Health", "Is it healthy over training?")
def make(context: Context) -> FigureData:
    """One small panel for each quantity that was recorded."""
    layer = context.lead
    panels, rows = [], []
    for small in SMALL:
        found = small.curve(context, layer)
        if found is None or not found[0].size:
            continue
        known = finite(found[1])
        # a loss that is never finite gets an empty panel, so that it is noticed
        if known.size or small.log:
            panels.append(_panel(context, small, *found))
        shown = (
            [number(float(v)) for v in (known[0], known.min(), known.max(), known[-1])]
            if known.size
            else ["–"] * 4
        )
        rows.append((small.title, *shown, str(int((~np.isfinite(found[1])).sum()))))
    if not panels:
        return absent(context.nothing("loss"))
    return FigureData(
        _finding(context),
        f"One number a picture over training steps, of the model or of {layer}; the last value is written. A line at a "
        "threshold is the clipping norm in use.",
        tuple(panels),
        Table(
            ("number", "first", "smallest", "largest", "last", "not finite"),
            tuple(rows),
            (1, 2, 3, 4, 5),
        ),
        layer=layer,
    )


def _panel(context: Context, small: Small, x: np.ndarray, y: np.ndarray) -> Panel:
    known = finite(y)
    log = small.log and known.size > 0 and float(known.min()) > 0
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if log:
        low, high = low / 1.2, min(1e300, high * 1.2)
    else:
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = (0.0 if low == 0 else max(-1e300, low - margin)), min(1e300, high + margin)
    bounds = context.config.bounds(small.check) if small.check else None
    allowed = None
    if bounds is not None and bounds.bounded and bounds.covers(context.lead):
        allowed = (
            -np.inf if bounds.min is None else bounds.min,
            np.inf if bounds.max is None else bounds.max,
        )
    first, end = float(x[0]), float(x[-1])
    marks: tuple[Mark, ...] = ()
    clip = _model("clip_threshold")(context, "") if small.title == "Gradient norm" else None
    if clip is not None and finite(clip[1]).size:
        marks = (Mark("y", float(finite(clip[1])[-1]), "clipped above", "limit"),)
    gaps = int((~np.isfinite(y)).sum())
    return Panel(
        Axis("", first, end if end > first else first + 1),
        Axis("", low, high, "log10" if log else "linear"),
        small.title,
        (Line(x.astype(float), y, small.title),),
        marks=marks,
        allowed=allowed,
        notes=(f"{gaps} not finite or not measured",) if gaps else (),
        remark=number(float(known[-1])) if known.size else "not finite",
    )


def _finding(context: Context) -> str:
    bad = [f for f in context.findings if f.status in ("fail", "warn")]
    if not bad:
        return "No check failed over the judged recordings."
    return " ".join(f"{sentence_case(f.message, f.layer).rstrip('.')}." for f in bad[:3])
