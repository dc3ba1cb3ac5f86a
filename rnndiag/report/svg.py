"""A panel as inline SVG.

Presentation attributes hold the light colours; the stylesheet recolours classes in the dark theme.
"""

from __future__ import annotations

import base64
import json
from html import escape

import numpy as np

from rnndiag.report.canvas import CHARACTER, Canvas, Frame, Size, frame_of
from rnndiag.report.decimate import thin_line
from rnndiag.report.figure_data import Axis, Band, Dots, Line, Matrix, Panel
from rnndiag.report.label_places import LabelPlaces, Place, around, clusters
from rnndiag.report.palette import DASHES, TONES, colours, indices, png
from rnndiag.report.shapes import hatching, shape

LINE = 13.0
"""Height of a line of text in units."""
BUBBLES_NEAR = 15.0
"""Bubbles closer than this distance share one label."""


class Drawing(Canvas):
    """Draws the elements of a panel on its canvas."""

    def __init__(self, panel: Panel, frame: Frame) -> None:
        super().__init__(panel, frame)
        self.places = LabelPlaces(
            frame.left, frame.width, frame.top - 12, frame.height - frame.bottom
        )

    def allowed(self) -> None:
        """Shade the range that a check allows."""
        if self.panel.allowed is None:
            return
        low, high = self.panel.allowed
        axis = self.panel.y
        top = float(self.y(min(max(high, axis.low), axis.high)))
        bottom = float(self.y(min(max(low, axis.low), axis.high)))
        self.parts.append(
            f'<rect x="{self.frame.left}" y="{top:.1f}" width="{self.frame.inner[0]:.1f}" '
            f'height="{max(0.0, bottom - top):.1f}" fill="{TONES["third"][0]}" fill-opacity="0.12" class="f-third"/>'
        )

    def band(self, band: Band) -> None:
        """The area between two curves, cut where one of them ends; if hatched, a rectangle."""
        if band.hatched:
            left, right = (float(v) for v in self.x(np.asarray(band.x, float)[[0, -1]]))
            top, bottom = (
                float(self.y(self._kept(edge)[0]))
                for edge in (np.asarray(band.high, float), np.asarray(band.low, float))
            )
            self.parts.append(hatching(left, right, top, bottom, band.tone))
            return
        x, high = thin_line(self.x(band.x), self.y(self._kept(band.high)), self.frame.inner[0])
        back, low = thin_line(self.x(band.x), self.y(self._kept(band.low)), self.frame.inner[0])
        if len(back) != len(x) or not np.array_equal(back, x, equal_nan=True):
            low = np.interp(x, back, low)
        for run in _stretches(np.isfinite(x) & np.isfinite(low) & np.isfinite(high)):
            there = [f"{a:.1f},{b:.1f}" for a, b in zip(x[run], high[run], strict=True)]
            back_again = [
                f"{a:.1f},{b:.1f}" for a, b in zip(x[run][::-1], low[run][::-1], strict=True)
            ]
            self.parts.append(
                f'<polygon points="{" ".join(there + back_again)}" fill="{TONES[band.tone][0]}" '
                f'fill-opacity="{band.strength}" class="f-{band.tone}"/>'
            )

    def _kept(self, values: np.ndarray) -> np.ndarray:
        """Values clipped to the axis. For areas only: a clipped line would show a plateau that does not exist."""
        axis = self.panel.y
        with np.errstate(invalid="ignore"):
            return np.where(np.isnan(values), np.nan, np.clip(values, axis.low, axis.high))

    def curve(self, line: Line) -> None:
        """A curve. Values beyond the axis are left out, not clipped: no plateau is drawn. One point is a dot."""
        x, y = thin_line(self.x(line.x), self.y(line.y), self.frame.inner[0])
        floor, roof = self.frame.height - self.frame.bottom, self.frame.top
        seen = np.isfinite(x) & np.isfinite(y) & (y <= floor + 0.5) & (y >= roof - 0.5)
        dash = f' stroke-dasharray="{DASHES[line.tone]}"' if DASHES[line.tone] else ""
        width = 1.3 if line.tone == "baseline" else 2
        self.places.add_curve(x, np.where(seen, y, np.nan))
        for run in _stretches(seen):
            points = list(zip(x[run], y[run], strict=True))
            if len(points) > 1:
                path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
                self.parts.append(
                    f'<polyline points="{path}" fill="none" stroke="{TONES[line.tone][0]}" '
                    f'stroke-width="{width}" stroke-linejoin="round"{dash} class="s-{line.tone}"/>'
                )
            if len(points) == 1 or line.dots:
                self.parts += [shape("main", a, b, 3.0, line.tone) for a, b in points]

    def bubbles(self) -> None:
        """Dots with areas proportional to a third number, and their numbers in the key; near ones share a label."""
        shown = [
            (k, float(self.x(one.x)), float(self.y(one.y)), one)
            for k, one in enumerate(self.panel.bubbles, 1)
            if np.isfinite(self.x(one.x) + self.y(one.y))
        ]
        radii = [4.0 + 9.0 * float(np.sqrt(max(0.0, min(1.0, one.area)))) for _, _, _, one in shown]
        for (_, x, y, one), radius in zip(shown, radii, strict=True):
            self.parts.append(shape("main", x, y, radius, one.tone, ' fill-opacity="0.55"'))
            self.places.add_point(x, y, radius)
        for group in clusters([s[1] for s in shown], [s[2] for s in shown], BUBBLES_NEAR):
            words = ", ".join(str(shown[k][0]) for k in group)
            _, x, y, _ = shown[group[0]]
            gap = max(radii[k] for k in group)
            self.label(around(x, y, gap, CHARACTER * len(words), LINE), words, "text")

    def label(self, candidates: list[Place], words: str, kind: str) -> None:
        """Text with an outline at the place with the smallest penalty."""
        at = self.places.choose(candidates)
        self.text(at.x, at.y + 4, words, anchor=at.anchor, kind=kind, halo=True)

    def dots(self, dots: Dots) -> None:
        """A cloud of points in the shape of its tone."""
        x, y = self.x(dots.x), self.y(dots.y)
        good = np.isfinite(x) & np.isfinite(y)
        self.parts += [
            shape(dots.tone, a, b, 3.2, dots.tone, ' fill-opacity="0.75"')
            for a, b in zip(x[good], y[good], strict=True)
        ]

    def marks(self) -> None:
        """Dashed lines, then their labels, each where it covers no curve, line or other label if there is room."""
        frame, found = self.frame, []
        floor, end = frame.height - frame.bottom, frame.width - frame.right
        for mark in self.panel.marks:
            at = float(self.x(mark.at) if mark.axis == "x" else self.y(mark.at))
            if mark.axis == "x" and frame.left - 1 <= at <= end + 1:
                ends = (at, frame.top, at, floor)
            elif mark.axis == "y" and frame.top - 1 <= at <= floor + 1:
                ends = (frame.left, at, end, at)
            else:
                continue
            self.line(*ends, mark.tone, dashed=True)
            self.places.add_curve(np.array(ends[::2]), np.array(ends[1::2]))
            found.append((mark, at))
        for mark, at in found:
            width = CHARACTER * len(mark.label)
            if mark.axis == "x":
                rows = np.arange(frame.top + 8, floor, LINE)
                spots = [
                    Place.of(at + side, float(y), anchor, width, LINE)
                    for y in rows
                    for side, anchor in ((5, "start"), (-5, "end"))
                ]
            else:
                spots = [
                    Place.of(x, at + side, anchor, width, LINE)
                    for x, anchor in ((end - 4, "end"), (frame.left + 6, "start"))
                    for side in (-9, 10)
                ]
            self.label(spots, mark.label, mark.tone)

    def matrix(self, matrix: Matrix, shown: bool) -> None:
        """The palette PNG, stretched over the plotting area; row 0 is at the bottom."""
        frame = self.frame
        data = base64.b64encode(png(indices(matrix)[::-1], colours(matrix.diverging))).decode()
        width, height = frame.inner
        hidden = "" if shown else ' visibility="hidden"'
        self.parts.append(
            f'<image x="{frame.left:g}" y="{frame.top:g}" width="{width:.1f}" height="{height:.1f}" '
            f'preserveAspectRatio="none" image-rendering="pixelated" class="matrix"{hidden} '
            f'data-low="{matrix.low:.6g}" data-high="{matrix.high:.6g}" data-log="{int(matrix.log)}" '
            f'data-block="{matrix.block[0]} {matrix.block[1]}" data-frame="{escape(matrix.frame)}" '
            f'href="data:image/png;base64,{data}"/>'
        )

    def unit_circle(self) -> None:
        """The circle |z| = 1."""
        if self.panel.circle:
            angle = np.linspace(0, 2 * np.pi, 181)
            self.curve(Line(np.cos(angle), np.sin(angle), tone="baseline"))


def _stretches(good: np.ndarray) -> list[slice]:
    """Slices of the consecutive runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def draw(panel: Panel, label: str, size: Size = "wide") -> str:
    """The panel as one `<svg>` element.

    Args:
        panel: What to draw.
        label: What a screen reader says.
        size: Its size. The panel's notes stand below it on the page.
    """
    frame = frame_of(panel, size)
    drawing = Drawing(panel, frame)
    drawing.allowed()
    for index, matrix in enumerate(panel.matrices):
        drawing.matrix(matrix, index == len(panel.matrices) - 1)
    drawing.axes()
    for band in panel.bands:
        drawing.band(band)
    drawing.unit_circle()
    for line in panel.lines:
        drawing.curve(line)
    for dots in panel.dots:
        drawing.dots(dots)
    drawing.bubbles()
    drawing.marks()
    cells = f"{_cells('x', panel.x)}{_cells('y', panel.y)}" if panel.matrices else ""
    return (
        f'<svg viewBox="0 0 {frame.width:g} {frame.height:g}" width="{frame.width:g}" '
        f'height="{frame.height:g}" role="img" aria-label="{escape(label)}"{cells} '
        f'font-family="system-ui, sans-serif">{"".join(drawing.parts)}</svg>'
    )


def _cells(name: str, axis: Axis) -> str:
    """Data attributes from which the page's script names the row and column under the pointer."""
    facts = {
        "label": axis.label,
        "first": axis.first,
        "every": axis.every,
        "names": list(axis.names),
    }
    return f' data-{name}="{escape(json.dumps(facts, separators=(",", ":")))}"'
