"""A panel as inline SVG: presentation attributes for the light page, classes by which the dark page recolours them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape

import numpy as np

from rnndiag.report.decimate import thin_line
from rnndiag.report.figure_data import Band, Bubble, Line, Mark, Matrix, Panel
from rnndiag.report.palette import FRAME, GRID, QUIET, TEXT, TONES, colours, indices, png
from rnndiag.report.ticks import number, place, power_of_ten, ticks


@dataclass(frozen=True)
class Frame:
    """Where the drawing lies on the canvas, in units of the SVG (a pixel at full width)."""

    width: float = 620.0
    height: float = 280.0
    left: float = 62.0
    right: float = 16.0
    top: float = 26.0
    bottom: float = 44.0

    @property
    def inner(self) -> tuple[float, float]:
        """Width and height of the plotting area."""
        return self.width - self.left - self.right, self.height - self.top - self.bottom


class Canvas:
    """Draws one panel; every method adds elements."""

    def __init__(self, panel: Panel, frame: Frame) -> None:
        self.panel, self.frame = panel, frame
        self.parts: list[str] = []
        self._labels: list[tuple[float, float]] = []

    def x(self, values: np.ndarray | float) -> np.ndarray:
        """Values of the x axis -> canvas."""
        return self.frame.left + place(self.panel.x, values) * self.frame.inner[0]

    def y(self, values: np.ndarray | float) -> np.ndarray:
        """Values of the y axis -> canvas."""
        return (
            self.frame.height
            - self.frame.bottom
            - place(self.panel.y, values) * self.frame.inner[1]
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "start",
        kind: str = "quiet",
        more: str = "",
    ) -> None:
        """Words at a place."""
        fill = TEXT[0] if kind == "text" else QUIET[0] if kind == "quiet" else TONES[kind][0]
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="{fill}" '
            f'class="f-{kind}"{more}>{escape(words)}</text>'
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, kind: str = "grid", more: str = ""
    ) -> None:
        """A straight line."""
        colour = {"grid": GRID, "frame": FRAME}.get(kind) or TONES[kind]
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{colour[0]}" class="s-{kind}"{more}/>'
        )

    def axes(self) -> None:
        """Grid, ticks and words of both axes."""
        frame, panel = self.frame, self.panel
        floor, wall = frame.height - frame.bottom, frame.left
        end, roof = frame.width - frame.right, frame.top
        inner_rows = max(3, int(frame.inner[1] / 34))
        for value, words in ticks(panel.y, inner_rows):
            y = float(self.y(value))
            if not panel.matrices:
                self.line(wall, y, end, y)
            self.text(wall - 7, y + 4, words, anchor="end")
        for value, words in ticks(panel.x, max(3, int(frame.inner[0] / 75))):
            x = float(self.x(value))
            self.line(x, floor, x, floor + 4, "frame")
            self.text(x, floor + 17, words, anchor="middle")
        self.line(wall, floor, end, floor, "frame")
        self.text((wall + end) / 2, frame.height - 6, panel.x.label, anchor="middle")
        middle = (roof + floor) / 2
        turned = f' transform="rotate(-90 13 {middle:.1f})"'
        self.text(13, middle, panel.y.label, anchor="middle", more=turned)
        if panel.title:
            self.text(wall, 14, panel.title, kind="text", more=' font-weight="600"')

    def allowed(self) -> None:
        """The range that a check allows, shaded."""
        if self.panel.allowed is None:
            return
        low, high = self.panel.allowed
        axis = self.panel.y
        top = float(self.y(min(max(high, axis.low), axis.high)))
        bottom = float(self.y(min(max(low, axis.low), axis.high)))
        width = self.frame.inner[0]
        self.parts.append(
            f'<rect x="{self.frame.left}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}" '
            f'fill="{TONES["third"][0]}" fill-opacity="0.12" class="f-third"/>'
        )

    def band(self, band: Band) -> None:
        """The area between two curves, cut where one of them ends."""
        x, low, high = self.x(band.x), self.y(self._kept(band.low)), self.y(self._kept(band.high))
        for run in _stretches(np.isfinite(x) & np.isfinite(low) & np.isfinite(high)):
            there = [f"{a:.1f},{b:.1f}" for a, b in zip(x[run], high[run], strict=True)]
            back = [f"{a:.1f},{b:.1f}" for a, b in zip(x[run][::-1], low[run][::-1], strict=True)]
            self.parts.append(
                f'<polygon points="{" ".join(there + back)}" fill="{TONES[band.tone][0]}" '
                f'fill-opacity="{band.strength}" class="f-{band.tone}"/>'
            )

    def _kept(self, values: np.ndarray) -> np.ndarray:
        """Values beyond the axis, brought to its edge: an area may be cut there, a line may not."""
        axis = self.panel.y
        with np.errstate(invalid="ignore"):
            return np.where(np.isnan(values), np.nan, np.clip(values, axis.low, axis.high))

    def curve(self, line: Line) -> None:
        """A curve; below the axis it is cut, not clipped, so that no plateau is drawn. One point is a dot."""
        x, y = thin_line(self.x(line.x), self.y(line.y), self.frame.inner[0])
        floor, roof = self.frame.height - self.frame.bottom, self.frame.top
        seen = np.isfinite(x) & np.isfinite(y) & (y <= floor + 0.5) & (y >= roof - 0.5)
        dash = ' stroke-dasharray="5 4"' if line.tone in ("baseline", "bound") else ""
        width = 1.3 if line.tone == "baseline" else 2
        for run in _stretches(seen):
            points = list(zip(x[run], y[run], strict=True))
            if len(points) > 1:
                path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
                self.parts.append(
                    f'<polyline points="{path}" fill="none" stroke="{TONES[line.tone][0]}" '
                    f'stroke-width="{width}" stroke-linejoin="round"{dash} class="s-{line.tone}"/>'
                )
            if len(points) == 1 or line.dots:
                self.parts += [self._dot(a, b, 3.0, line.tone) for a, b in points]

    def _dot(self, x: float, y: float, radius: float, tone: str, more: str = "") -> str:
        return (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{TONES[tone][0]}" '
            f'class="f-{tone}"{more}/>'
        )

    def bubble(self, bubble: Bubble) -> None:
        """A dot whose area is the third number."""
        x, y = float(self.x(bubble.x)), float(self.y(bubble.y))
        if not (np.isfinite(x) and np.isfinite(y)):
            return
        radius = 4.0 + 9.0 * float(np.sqrt(max(0.0, min(1.0, bubble.area))))
        self.parts.append(self._dot(x, y, radius, bubble.tone, ' fill-opacity="0.55"'))
        shifted = self._free(y + 4)
        near_end = x > self.frame.width - self.frame.right - 110
        side = x - radius - 4 if near_end else x + radius + 4
        self.text(side, shifted, bubble.label, anchor="end" if near_end else "start", kind="text")

    def _free(self, y: float) -> float:
        """A height for a word at which no other one stands."""
        taken = sorted(place for place, _ in self._labels)
        while any(abs(y - other) < 12 for other in taken):
            y += 12
        self._labels.append((y, 0.0))
        return y

    def mark(self, mark: Mark, level: int) -> None:
        """A dashed line with its word; several words stand one below the other."""
        frame = self.frame
        dash = ' stroke-dasharray="4 3"'
        if mark.axis == "x":
            x = float(self.x(mark.at))
            if not frame.left - 1 <= x <= frame.width - frame.right + 1:
                return
            self.line(x, frame.top, x, frame.height - frame.bottom, mark.tone, dash)
            late = x > frame.left + 0.72 * frame.inner[0]
            where = x - 5 if late else x + 5
            self.text(
                where,
                frame.top + 12 + 15 * level,
                mark.label,
                anchor="end" if late else "start",
                kind=mark.tone,
            )
            return
        y = float(self.y(mark.at))
        if frame.top - 1 <= y <= frame.height - frame.bottom + 1:
            self.line(frame.left, y, frame.width - frame.right, y, mark.tone, dash)
            self.text(
                frame.width - frame.right - 4, y - 5, mark.label, anchor="end", kind=mark.tone
            )

    def matrix(self, matrix: Matrix, index: int) -> None:
        """The palette picture, stretched over the plotting area; row 0 lies at the bottom."""
        frame = self.frame
        picture = indices(matrix)[::-1]
        data = base64.b64encode(png(picture, colours(matrix.diverging))).decode()
        width, height = frame.inner
        hidden = "" if index == 0 else ' visibility="hidden"'
        self.parts.append(
            f'<image x="{frame.left}" y="{frame.top}" width="{width:.1f}" height="{height:.1f}" '
            f'preserveAspectRatio="none" image-rendering="pixelated" class="matrix"{hidden} '
            f'data-low="{matrix.low:.6g}" data-high="{matrix.high:.6g}" data-log="{int(matrix.log)}" '
            f'data-frame="{escape(matrix.frame)}" href="data:image/png;base64,{data}"/>'
        )

    def notes(self) -> None:
        """Words inside the picture, at its lower right."""
        frame = self.frame
        for k, words in enumerate(reversed(self.panel.notes)):
            self.text(
                frame.width - frame.right - 6,
                frame.height - frame.bottom - 8 - 15 * k,
                words,
                anchor="end",
            )

    def unit_circle(self) -> None:
        """The circle |z| = 1."""
        if self.panel.circle:
            angle = np.linspace(0, 2 * np.pi, 181)
            self.curve(Line(np.cos(angle), np.sin(angle), tone="baseline"))


def _stretches(good: np.ndarray) -> list[slice]:
    """Slices of the unbroken runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def draw(panel: Panel, label: str, frame: Frame | None = None) -> str:
    """The panel as one `<svg>` element; `label` is what a screen reader says."""
    frame = frame or Frame()
    canvas = Canvas(panel, frame)
    canvas.allowed()
    for index, matrix in enumerate(panel.matrices):
        canvas.matrix(matrix, index)
    canvas.axes()
    for band in panel.bands:
        canvas.band(band)
    canvas.unit_circle()
    for line in panel.lines:
        canvas.curve(line)
    for bubble in panel.bubbles:
        canvas.bubble(bubble)
    for level, mark in enumerate(panel.marks):
        canvas.mark(mark, level)
    canvas.notes()
    return (
        f'<svg viewBox="0 0 {frame.width:g} {frame.height:g}" width="{frame.width:g}" '
        f'height="{frame.height:g}" role="img" aria-label="{escape(label)}" '
        f'font-family="system-ui, sans-serif">{"".join(canvas.parts)}</svg>'
    )


def colour_bar(matrix: Matrix) -> str:
    """A horizontal scale of a matrix's colours, with its words."""
    data = base64.b64encode(
        png(np.arange(4, 256, dtype=np.uint8)[None], colours(matrix.diverging))
    ).decode()
    words = power_of_ten if matrix.log else number
    return (
        '<svg class="bar" viewBox="0 0 260 34" width="260" height="34" role="img" '
        f'aria-label="colours from {escape(words(matrix.low))} to {escape(words(matrix.high))}" '
        'font-family="system-ui, sans-serif">'
        f'<image x="4" y="4" width="252" height="10" preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
        f'<text x="4" y="29" font-size="12" fill="{QUIET[0]}" class="f-quiet">{escape(words(matrix.low))}</text>'
        f'<text x="256" y="29" font-size="12" text-anchor="end" fill="{QUIET[0]}" class="f-quiet">'
        f"{escape(words(matrix.high))}</text></svg>"
    )
