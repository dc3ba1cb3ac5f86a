"""Draws one panel on matplotlib axes, with the arrays, limits, labels and colours of the page's SVG."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rnndiag.report.canvas import shortened
from rnndiag.report.figure_data import Axis, Panel
from rnndiag.report.label_places import LabelPlaces, around, clusters
from rnndiag.report.palette import DASHES, FAINT, NO_PATH, TONES, colours, indices
from rnndiag.report.ticks import ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST = 1e150
"""Larger limits overflow in matplotlib's own arithmetic."""

LETTER, LABEL_HEIGHT = 4.6, 10.0
"""Width of an average letter and height of a line of small text, in points."""
NEAR = 10.0
"""Bubbles closer than this many points share one label."""
MARKERS = {"second": "s", "third": "^", "bound": "D", "limit": "v", "bad": ">"}


def draw_panel(panel: Panel, ax: Axes, legend_below: bool = False) -> None:
    """Draw everything that a panel holds; a small figure has its legend below the axes, where it covers nothing."""
    _axes(panel, ax)
    if panel.allowed is not None:
        low, high = np.clip(panel.allowed, panel.y.low, panel.y.high)
        ax.axhspan(low, high, color=TONES["third"][0], alpha=0.12, label="allowed", lw=0)
    if panel.matrices:
        _matrix(panel, ax)
    for band in panel.bands:
        colour = TONES[band.tone][0]
        edges = [np.clip(edge, panel.y.low, panel.y.high) for edge in (band.low, band.high)]
        label = _plain(band.label) if band.visible else ""
        how: dict[str, Any] = {"color": colour, "alpha": band.strength}
        if band.hatched:
            how = {"facecolor": "none", "edgecolor": colour, "alpha": 0.55, "hatch": "///"}
        ax.fill_between(band.x, *edges, lw=0, label=label, **how)
    if panel.circle:
        angle = np.linspace(0, 2 * np.pi, 181)
        ax.plot(np.cos(angle), np.sin(angle), color=TONES["baseline"][0], ls="--", lw=1)
        ax.set_aspect("equal")
    for line in panel.lines:
        lone = np.isfinite(np.asarray(line.y, float)).sum() == 1
        marker = "o" if line.dots or lone else None
        ax.plot(
            line.x,
            _inside(np.asarray(line.y, float), panel.y),
            label=_plain(line.label),
            marker=marker,
            markersize=4,
            lw=1.6,
            **_stroke(line.tone),
        )
    for dots in panel.dots:
        marker = MARKERS.get(dots.tone, "o")
        ax.scatter(
            dots.x, dots.y, s=14, marker=marker, color=TONES[dots.tone][0], label=_plain(dots.label)
        )
    _bubbles(panel, ax)
    _words(panel, ax, legend_below)


def _bubbles(panel: Panel, ax: Axes) -> None:
    """Dots with their numbers in the legend; close ones share a label at the place with the smallest penalty."""
    points = 72 / ax.figure.dpi
    low, high = (ax.transAxes.transform(corner) * points for corner in ((0, 0), (1, 1)))
    places = LabelPlaces(low[0], high[0], low[1], high[1])
    found: list[tuple[int, float, float, float]] = []
    for k, bubble in enumerate(panel.bubbles, 1):
        area = 40 + 260 * bubble.area
        ax.scatter(
            bubble.x,
            bubble.y,
            s=area,
            color=TONES[bubble.tone][0],
            alpha=0.55,
            label=_plain(f"{k} {bubble.label}"),
        )
        x, y = ax.transData.transform((bubble.x, bubble.y)) * points
        if np.isfinite(x + y):
            found.append((k, x, y, math.sqrt(area / math.pi)))
            places.add_point(x, y, found[-1][3])
    for group in clusters([one[1] for one in found], [one[2] for one in found], NEAR):
        words = ", ".join(str(found[k][0]) for k in group)
        _, x, y, _ = found[group[0]]
        gap = max(found[k][3] for k in group)
        at = places.choose(around(x, y, gap, LETTER * len(words), LABEL_HEIGHT))
        first = panel.bubbles[found[group[0]][0] - 1]
        ax.annotate(
            words,
            (first.x, first.y),
            (at.x - x, at.y - y),
            textcoords="offset points",
            ha={"start": "left", "middle": "center", "end": "right"}[at.anchor],
            va="center",
            fontsize="small",
        )


def drawable(panel: Panel) -> bool:
    """Whether matplotlib can draw axes with the limits of this panel; very large numbers overflow."""
    limits = (panel.x.low, panel.x.high, panel.y.low, panel.y.high)
    logarithms = panel.matrices[-1].high if panel.matrices else 0.0
    return all(abs(limit) < LARGEST for limit in (*limits, logarithms))


def _stroke(tone: str) -> dict[str, Any]:
    dash = DASHES[tone]
    style: Any = (0, tuple(float(part) / 1.6 for part in dash.split())) if dash else "-"
    return {"color": TONES[tone][0], "linestyle": style}


def _inside(values: np.ndarray, axis: Axis) -> np.ndarray:
    """The values with nan for those outside of the axis, so that a line has a gap there."""
    with np.errstate(invalid="ignore"):
        return np.where((values >= axis.low) & (values <= axis.high), values, np.nan)


def _axes(panel: Panel, ax: Axes) -> None:
    from matplotlib.ticker import NullLocator

    for axis, across in ((panel.x, True), (panel.y, False)):
        scale = {"linear": "linear", "log10": "log", "log2": "log"}[axis.scale]
        (ax.set_xscale if across else ax.set_yscale)(scale)
        (ax.set_xlim if across else ax.set_ylim)(*_apart(axis.low, axis.high))
        found = ticks(axis, 7 if across else 40 if axis.names else 7)
        which = ax.xaxis if across else ax.yaxis
        which.set_minor_locator(NullLocator())
        which.set_ticks(
            [value for value, _ in found], [_plain(shortened(words)) for _, words in found]
        )
        (ax.set_xlabel if across else ax.set_ylabel)(_plain(axis.label))
    title = f"{panel.title}: {panel.remark}" if panel.remark else panel.title
    ax.set_title(_plain(title), fontsize="medium", loc="left")


def _apart(low: float, high: float) -> tuple[float, float]:
    """Limits that differ by more than rounding, since matplotlib warns about equal ones."""
    size = max(abs(low), abs(high))
    return (low, high) if high - low > 1e-9 * size else (low - 0.1 * size, high + 0.1 * size)


def _plain(words: str) -> str:
    """Text with dollar signs escaped: matplotlib would read them as the start of a formula."""
    return words.replace("$", r"\$")


def _matrix(panel: Panel, ax: Axes) -> None:
    """Draw the last of the panel's matrices in the palette of the page."""
    matrix = panel.matrices[-1]
    found = indices(matrix)
    opacity = np.where(found == NO_PATH, FAINT, 255).astype(np.uint8)
    picture = np.dstack([colours(matrix.diverging)[found], opacity])
    extent = (panel.x.low, panel.x.high, panel.y.low, panel.y.high)
    ax.imshow(picture, origin="lower", extent=extent, aspect="auto", interpolation="nearest")
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    ramp = ListedColormap(colours(matrix.diverging)[4:] / 255.0)
    scale = ScalarMappable(Normalize(matrix.low, matrix.high), ramp)
    label = f"log10 of {matrix.label}" if matrix.log else matrix.label
    ax.figure.colorbar(scale, ax=ax, label=_plain(label))
    if matrix.frame:
        ax.set_title(_plain(matrix.frame), fontsize="medium", loc="left")


def _words(panel: Panel, ax: Axes, legend_below: bool) -> None:
    for mark in panel.marks:
        draw = ax.axvline if mark.axis == "x" else ax.axhline
        draw(mark.at, lw=1, label=_plain(mark.label), **_stroke(mark.tone))
    if panel.notes:
        ax.text(
            0.98,
            0.03,
            _plain("\n".join(panel.notes)),
            transform=ax.transAxes,
            ha="right",
            va="bottom",
            fontsize="small",
        )
    handles, labels = ax.get_legend_handles_labels()
    named = {label: handle for handle, label in zip(handles, labels, strict=True) if label}
    if len(named) > 1 or panel.marks or panel.allowed is not None:
        place: dict[str, Any] = {}
        # borderaxespad: font heights of room for the numbers and the label of the axis
        if legend_below:
            place = {
                "loc": "upper center",
                "bbox_to_anchor": (0.5, 0),
                "borderaxespad": 4.2,
                "ncols": 2,
            }
        elif panel.bubbles:  # many bubbles leave no room for their names within the axes
            place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        ax.legend(named.values(), named.keys(), fontsize="small", frameon=False, **place)
