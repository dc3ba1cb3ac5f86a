"""F6: relative bias and cosine of every window and chunk, beside the noise of one minibatch gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rnndiag.report.context import Context
from rnndiag.report.figure_data import Axis, Band, FigureData, Line, Mark, Panel, Table
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.seam import seam_of
from rnndiag.report.ticks import number, ten_to
from rnndiag.stats.advice import SEAM, Advice, percent
from rnndiag.stats.between_windows import over_windows, shared_squares
from rnndiag.stats.over_recordings import median_over_recordings
from rnndiag.stats.window import systematic_bias

FLOOR = 1e-4
"""Smaller biases are not drawn: no training needs a truncation that exact."""
_OF_STACK = " All layers of the stack are cut at the same step, as training does it."


@dataclass(frozen=True)
class Curves:
    """The curves over windows: of a layer, of its stack, or across the seam of chunked training."""

    name: str
    prefix: str
    windows: np.ndarray
    bias: np.ndarray
    cosine: np.ndarray | None
    systematic: np.ndarray | None

    @property
    def words(self) -> str:
        """Prefix of the names of the curves."""
        return "across the seam: " if self.prefix else ""


@figure("F6", "Truncation", "What would truncation cost?")
def make(context: Context) -> FigureData:
    """Windows and chunks of the lead layer or of its stack, pooled over the judged recordings."""
    layer = context.lead
    advice = context.advice(layer) if layer else None
    curves = None if advice is None else _curves(context, advice.name, SEAM if advice.kept else "")
    if curves is None or advice is None:
        return absent(context.nothing("window_bias", layer))
    return FigureData(
        _finding(context, layer, advice),
        "Left of a curve's crossing of 10 %, truncation turns the gradient by more than a tenth. Two biases: on this "
        "minibatch, which is partly noise, and systematic, which training cannot average out. Shaded: below the "
        "noise of one step; a statement about one step, not a licence."
        + _OF_STACK
        * (curves.name in context.stacks),
        _panels(context, layer, curves, advice),
        _table(curves, _noise(context, curves.name)),
        layer=layer,
    )


def _curves(context: Context, name: str, prefix: str = "") -> Curves | None:
    bias = _middle(context, f"{prefix}window_bias", name)
    if bias is None:
        return None
    return Curves(
        name,
        prefix,
        _windows(context, f"{prefix}window_bias", name),
        bias,
        _middle(context, f"{prefix}window_cosine", name),
        _systematic(context, prefix, name),
    )


def _lines(context: Context, layer: str, curves: Curves) -> list[Line]:
    windows, words = curves.windows, curves.words
    shown = _positive(curves.bias[1:])
    lines = [Line(windows[1:], shown, f"{words}sliding window, on the minibatch", "main")]
    if curves.systematic is not None:
        curve = _positive(curves.systematic[1:])
        at = windows[1 : curves.systematic.size]
        lines.append(Line(at, curve, f"{words}window, systematic", "second"))
    sizes, chunk = (_middle(context, f"chunk_{key}", curves.name) for key in ("size", "bias"))
    if sizes is not None and chunk is not None and not curves.prefix:
        lines.append(Line(sizes, _positive(chunk), "chunks", "third", dots=True))
    across = seam_of(context, layer) if curves.prefix else None
    if across is not None:
        at, value = np.array([across.own]), np.array([across.bias])
        lines.append(Line(at, _positive(value), "chunks as they are in use", "third", dots=True))
    own = _curves(context, layer) if (curves.prefix, curves.name) != ("", layer) else None
    if own is not None:
        what = f"window, {layer} alone" + " within its chunk" * bool(curves.prefix)
        lines.append(Line(own.windows[1:], _positive(own.bias[1:]), what, "bound"))
    return lines


def _panels(context: Context, layer: str, curves: Curves, advice: Advice) -> tuple[Panel, ...]:
    lines, windows, cosine = _lines(context, layer, curves), curves.windows, curves.cosine
    known = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    low = ten_to(np.floor(np.log10(max(FLOOR, known.min())))) if known.size else 1e-3
    high = max(2.0, min(1e300, float(known.max()) * 1.3)) if known.size else 2.0
    used = advice.in_use.steps if advice.in_use is not None else 0.0
    longest = max(2.0, windows[-1], *(line.x.max() for line in lines if line.x.size))
    if np.isfinite(used):  # a window longer than all measured ones is not drawn
        longest = max(longest, min(used, 2 * longest))
    across = Axis("window or chunk, in steps", 1.0, float(longest), "log2")
    band: tuple[Band, ...] = ()
    noise = _noise(context, curves.name)
    if noise is not None:
        edge = np.array([across.low, across.high])
        ceiling = np.full(2, min(noise, high))
        band = (Band(edge, np.full(2, low), ceiling, "noise of one step", 0.1, "baseline"),)
    marks = _marks(advice)
    panels = [
        Panel(
            across,
            Axis("relative bias", low, high, "log10"),
            "Relative bias",
            tuple(lines),
            band,
            (*marks, Mark("y", 0.1, "10 %", "limit")),
            notes=(f"below {low:g}: not drawn",) if known.size and known.min() < low else (),
        )
    ]
    if cosine is not None:
        floor = min(0.0, float(np.nanmin(cosine[1:]))) if np.isfinite(cosine[1:]).any() else 0.0
        turned = Line(windows[1:], cosine[1:], "sliding window", "main")
        up = Axis("cosine", floor, 1.0)
        panels.append(
            Panel(across, up, "Cosine with the full gradient", (turned,), marks=marks, shape="low")
        )
    return tuple(panels)


def _windows(context: Context, quantity: str, layer: str) -> np.ndarray:
    """The measured windows τ: 0, 1, 2, ...; if there are very many, only some."""
    series = context.series(quantity, layer)
    return np.zeros(0) if series is None else series.positions("lag").astype(float)


def _measured_at(windows: np.ndarray, window: float) -> int:
    """Index of the largest measured window that is at most `window`."""
    return max(0, int(np.searchsorted(windows, window, side="right")) - 1)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _middle(context: Context, quantity: str, layer: str) -> np.ndarray | None:
    """Median over the judged recordings; None if there are none."""
    series = context.series(quantity, layer)
    if series is None:
        return None
    judged = np.isin(series.steps, context.run.judged())
    values = over_windows(series) if "lag" in series.dims else np.asarray(series.values, float)
    found = median_over_recordings(values[judged] if judged.any() else values[-1:])
    return found if np.isfinite(found).any() else None


def _systematic(context: Context, prefix: str, layer: str) -> np.ndarray | None:
    tail = context.series(f"{prefix}tail_mean_square", layer)
    gradient = context.series(f"{prefix}gradient_mean_square", layer)
    if tail is None or gradient is None:
        return None
    squares = shared_squares(tail, gradient, None)
    found = None if squares is None else systematic_bias(squares.tail, squares.whole)
    return None if found is None or not found.resolved else np.asarray(found.bias)


def _noise(context: Context, layer: str) -> float | None:
    noise, size = _middle(context, "noise", layer), _middle(context, "full_gradient_norm", layer)
    if noise is None or size is None or not float(size) > 0:
        return None
    return float(noise) / float(size)


def _marks(advice: Advice) -> tuple[Mark, ...]:
    marks = []
    window, used = advice.window, advice.in_use
    if window.reached and window.steps >= 1:
        marks.append(Mark("x", window.steps, f"recommended: {window.steps:.0f}", "third"))
    if used is not None and used.steps >= 1:
        marks.append(Mark("x", used.steps, f"in use: {used.steps:.0f}", "second"))
    return tuple(marks)


def _finding(context: Context, layer: str, advice: Advice) -> str:
    """The recommended window, what the truncation in use removes, and the noise to compare with, as text."""
    of = f"Of {advice.name}: " if len(context.layers) > 1 else ""
    words = [of + advice.text]
    across = seam_of(context, layer)
    if across is not None:
        words.append(f"{percent(across.share)} of the credit of a chunk's losses lies before it.")
    noise = _noise(context, advice.name)
    if noise is not None:
        words.append(f"The noise of one step is {noise:.2g} times the gradient.")
    return " ".join(words)


def _table(curves: Curves, noise: float | None) -> Table:
    windows = curves.windows
    wanted = [2**k for k in range(14) if 2**k < windows[-1]]
    chosen = sorted({*(_measured_at(windows, k) for k in wanted), windows.size - 1} - {0})

    def cell(values: np.ndarray | None, at: int, over: float | None = 1.0) -> str:
        if values is None or not over or at >= values.size or not np.isfinite(values[at]):
            return "–"
        return number(float(values[at]) / over)

    rows = tuple(
        (
            f"{windows[k]:.0f}",
            cell(curves.bias, k),
            cell(curves.systematic, k),
            cell(curves.bias, k, noise),
            cell(curves.cosine, k),
        )
        for k in chosen
    )
    head = ("window", "bias on the minibatch", "systematic bias", "over one step's noise", "cosine")
    return Table(head, rows, (0, 1, 2, 3, 4))
