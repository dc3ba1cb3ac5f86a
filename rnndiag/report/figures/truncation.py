"""F6: what truncation would cost: relative bias and cosine of every window and chunk, beside the noise yardstick."""

from __future__ import annotations

import numpy as np

from rnndiag.errors import RunUnreadable
from rnndiag.report.context import Context
from rnndiag.report.figure_data import Axis, Band, FigureData, Line, Mark, Panel, Table
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.ticks import number, ten_to
from rnndiag.run.quantities import MODEL
from rnndiag.run.window import systematic_bias

QUESTION = "What would truncation cost?"
FLOOR = 1e-4
"""Biases below this are not drawn: nobody asks for a truncation that exact."""


@figure("F6", "Truncation", QUESTION)
def make(context: Context) -> FigureData:
    """Windows and chunks of the lead layer, pooled over the judged recordings."""
    layer = context.lead
    bias = _middle(context, "window_bias", layer) if layer else None
    if bias is None:
        return absent("F6", context.nothing("window_bias", layer))
    cosine, systematic = _middle(context, "window_cosine", layer), _systematic(context, layer)
    noise = _noise(context, layer)
    windows = _windows(context, layer)
    return FigureData(
        "F6",
        QUESTION,
        _finding(context, layer, windows, bias, cosine, noise),
        "Left of a curve's crossing of 10 %, truncation turns the gradient by more than a tenth. Two biases: on this "
        "minibatch, which is partly noise, and systematic, which training cannot average out. Shaded: below the "
        "noise of one step; a statement about one step, not a licence.",
        _panels(context, layer, windows, bias, systematic, cosine, noise),
        _table(windows, bias, systematic, cosine),
        layer=layer,
    )


def _panels(
    context: Context,
    layer: str,
    windows: np.ndarray,
    bias: np.ndarray,
    systematic: np.ndarray | None,
    cosine: np.ndarray | None,
    noise: float | None,
) -> tuple[Panel, ...]:
    lines = [Line(windows[1:], _positive(bias[1:]), "sliding window, on the minibatch", "main")]
    if systematic is not None:
        curve = _positive(systematic[1:])
        lines.append(Line(windows[1 : systematic.size], curve, "window, systematic", "second"))
    sizes, chunk = _middle(context, "chunk_size", layer), _middle(context, "chunk_bias", layer)
    if sizes is not None and chunk is not None:
        lines.append(Line(sizes, _positive(chunk), "chunks", "third", dots=True))
    known = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    low = ten_to(np.floor(np.log10(max(FLOOR, known.min())))) if known.size else 1e-3
    high = max(2.0, min(1e300, float(known.max()) * 1.3)) if known.size else 2.0
    across = Axis("window or chunk, in steps", 1.0, float(max(2, windows[-1])), "log2")
    band: tuple[Band, ...] = ()
    if noise is not None:
        edge = np.array([across.low, across.high])
        ceiling = np.full(2, min(noise, high))
        band = (Band(edge, np.full(2, low), ceiling, "noise of one step", 0.1, "baseline"),)
    marks = _marks(context, layer)
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


def _windows(context: Context, layer: str) -> np.ndarray:
    """The windows τ that were measured: 0, 1, 2, ..., with gaps where there are very many."""
    series = context.series("window_bias", layer)
    return np.zeros(0) if series is None else series.positions("lag").astype(float)


def _measured_at(windows: np.ndarray, window: float) -> int:
    """Where the largest measured window that is no longer than `window` stands."""
    return max(0, int(np.searchsorted(windows, window, side="right")) - 1)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _middle(context: Context, quantity: str, layer: str) -> np.ndarray | None:
    """Median over the judged recordings."""
    series = context.series(quantity, layer)
    if series is None:
        return None
    judged = np.isin(series.steps, context.run.judged())
    values = np.asarray(series.values, float)
    values = values[judged] if judged.any() else values[-1:]
    known = ~np.isnan(values).all(0)
    middle = np.full(values.shape[1:], np.nan)
    middle[known] = np.nanmedian(values[:, known], axis=0)
    return middle if np.isfinite(middle).any() else None


def _systematic(context: Context, layer: str) -> np.ndarray | None:
    tail = context.series("tail_mean_square", layer)
    gradient = context.series("gradient_mean_square", layer)
    if tail is None or gradient is None:
        return None
    found = systematic_bias(tail.values, gradient.values)
    return np.asarray(found.bias) if found.resolved else None


def _noise(context: Context, layer: str) -> float | None:
    noise, size = _middle(context, "noise", layer), _middle(context, "full_gradient_norm", layer)
    if noise is None or size is None or not float(size) > 0:
        return None
    return float(noise) / float(size)


def _in_use(context: Context) -> float | None:
    found = _middle(context, "window_in_use", MODEL)
    return None if found is None else float(found)


def _marks(context: Context, layer: str) -> tuple[Mark, ...]:
    marks = []
    try:
        window = context.run.window(layer=layer)
    except RunUnreadable:
        window = None
    if window is not None and window.reached and window.steps >= 1:
        marks.append(Mark("x", window.steps, f"recommended: {window.steps:.0f}", "third"))
    used = _in_use(context)
    if used is not None and used >= 1:
        marks.append(Mark("x", used, f"in use: {used:.0f}", "second"))
    return tuple(marks)


def _finding(
    context: Context,
    layer: str,
    windows: np.ndarray,
    bias: np.ndarray,
    cosine: np.ndarray | None,
    noise: float | None,
) -> str:
    words = []
    try:
        window = context.run.window(layer=layer)
    except RunUnreadable:
        window = None
    if window is not None and window.reached:
        at = _measured_at(windows, window.steps)
        turned = (
            "" if cosine is None or not np.isfinite(cosine[at]) else f" (cosine {cosine[at]:.3f})"
        )
        words.append(f"Recommended for {layer}: {window.text}{turned}.")
    elif window is not None:
        words.append(f"{window.text[:1].upper()}{window.text[1:]}.")
    used = _in_use(context)
    at = _measured_at(windows, used) if used is not None else 0
    if used is not None and 1 <= used <= windows[-1] and np.isfinite(bias[at]):
        words.append(
            f"The window in use, {used:.0f} steps, is off by {100 * bias[at]:.3g} % on a minibatch."
        )
    if noise is not None:
        words.append(f"The noise of one step is {noise:.2g} times the gradient.")
    return " ".join(words) or f"The bias of {layer} is not finite."


def _table(
    windows: np.ndarray,
    bias: np.ndarray,
    systematic: np.ndarray | None,
    cosine: np.ndarray | None,
) -> Table:
    wanted = [2**k for k in range(14) if 2**k < windows[-1]]
    chosen = sorted({*(_measured_at(windows, k) for k in wanted), windows.size - 1} - {0})

    def cell(values: np.ndarray | None, at: int) -> str:
        if values is None or at >= values.size or not np.isfinite(values[at]):
            return "–"
        return number(float(values[at]))

    rows = tuple(
        (f"{windows[k]:.0f}", cell(bias, k), cell(systematic, k), cell(cosine, k)) for k in chosen
    )
    return Table(
        ("window", "bias on the minibatch", "systematic bias", "cosine"), rows, (0, 1, 2, 3)
    )
