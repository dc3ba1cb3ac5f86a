"""An SVG canvas with two axes: maps values to pixels and draws text, lines, grid and ticks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape
from typing import Literal

import numpy as np

from rnndiag.report.figure_data import Axis, Panel
from rnndiag.report.palette import DASHES, FRAME, GRID, PAGE, QUIET, TEXT, TONES
from rnndiag.report.ticks import place, ticks

Size = Literal["wide", "narrow", "small"]
"""Size of a drawing: beside text, on a narrow screen, or one of several small ones."""

CHARACTER = 6.7
"""Width of an average character at font size 12."""
MATRIX_CHARACTER = 9.0
"""The same for matrices, whose text the stylesheet enlarges on narrow screens: they have one drawing for all sizes."""


@dataclass(frozen=True)
class Frame:
    """Size and margins of the plotting area, in units of the SVG (one pixel at full width)."""

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


WIDE = Frame()
LOW = Frame(height=190)
SQUARE = Frame(width=490, height=462, right=16)
SMALL = Frame(width=300, height=190, left=62, right=14, top=26, bottom=40)
SMALL_SQUARE = replace(SMALL, width=300, height=190, left=96, right=80)
NARROW_WIDTH = 340.0
"""Width on a narrow screen in units, each about one pixel, so that text keeps its size."""
NARROW_LABEL = 110.0
"""Most room for row names beside the axis of a narrow drawing."""


def frame_of(panel: Panel, size: Size = "wide") -> Frame:
    """The frame that suits a panel: its shape, a row for every name, room for the longest name."""
    if size == "small":
        return SMALL_SQUARE if panel.shape == "square" else SMALL
    frame = {"wide": WIDE, "low": LOW, "square": SQUARE}[panel.shape]
    if size == "narrow":
        frame = replace(frame, width=NARROW_WIDTH, height=min(frame.height, 320.0), right=14)
        if panel.y.names:
            rows = min(60, len(panel.y.names))
            frame = replace(frame, left=NARROW_LABEL, height=max(120.0, 84.0 + 16 * rows))
        return frame
    if not panel.y.names:
        return frame
    left = min(200.0, 40 + character(panel) * max(len(shortened(name)) for name in panel.y.names))
    if panel.shape == "square":
        return replace(frame, left=max(frame.left, left), width=frame.width + left - frame.left)
    rows = min(60, len(panel.y.names))
    return replace(frame, left=max(frame.left, left), height=max(120.0, 84.0 + 16 * rows))


def character(panel: Panel) -> float:
    """Width of an average character of the panel's text where it is largest."""
    return MATRIX_CHARACTER if panel.matrices else CHARACTER


def shortened(name: str, most: int = 24) -> str:
    """A name cut to fit beside an axis. Its end is kept, since that is where layer names differ."""
    return name if len(name) <= most else f"…{name[-most + 1 :]}"


class Canvas:
    """Axes of one panel; every method adds elements to `parts`."""

    def __init__(self, panel: Panel, frame: Frame) -> None:
        self.panel, self.frame = panel, frame
        self.parts: list[str] = []

    def x(self, values: np.ndarray | float) -> np.ndarray:
        """Values of the x axis -> canvas."""
        return self.frame.left + place(self.panel.x, values) * self.frame.inner[0]

    def y(self, values: np.ndarray | float) -> np.ndarray:
        """Values of the y axis -> canvas."""
        floor = self.frame.height - self.frame.bottom
        return floor - place(self.panel.y, values) * self.frame.inner[1]

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "start",
        kind: str = "quiet",
        halo: bool = False,
        more: str = "",
    ) -> None:
        """Text at a point; nothing if the point is not finite. `halo` adds an outline, for text on top of curves."""
        if not np.isfinite(x + y):
            return
        fill = TEXT[0] if kind == "text" else QUIET[0] if kind == "quiet" else TONES[kind][0]
        if halo:
            around = f'stroke="{PAGE[0]}" stroke-width="4" paint-order="stroke"'
            more += f' {around} stroke-linejoin="round"'
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="{fill}" '
            f'class="f-{kind}{" s-page" if halo else ""}"{more}>{escape(words)}</text>'
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, kind: str = "grid", dashed: bool = False
    ) -> None:
        """A straight line; nothing if one of its ends is not finite."""
        if not np.isfinite(x1 + y1 + x2 + y2):
            return
        colour = {"grid": GRID, "frame": FRAME}.get(kind) or TONES[kind]
        dash = f' stroke-dasharray="{DASHES["limit"]}"' if dashed else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{colour[0]}" class="s-{kind}"{dash}/>'
        )

    def axes(self) -> None:
        """Draw grid, ticks and labels of both axes."""
        frame, panel = self.frame, self.panel
        floor, wall = frame.height - frame.bottom, frame.left
        end, roof = frame.width - frame.right, frame.top
        for value, words in ticks(panel.y, self._most(panel.y, frame.inner[1], 34, 15)):
            y = float(self.y(value))
            if not panel.matrices:
                self.line(wall, y, end, y)
            if panel.y.names:
                words = shortened(words, self._letters(wall))
            self.text(wall - 7, y + 4, words, anchor="end")
        for value, words in ticks(panel.x, self._most(panel.x, frame.inner[0], 62, 62)):
            x = float(self.x(value))
            self.line(x, floor, x, floor + 4, "frame")
            self.text(x, floor + 17, shortened(words, 12), anchor="middle")
        self.line(wall, floor, end, floor, "frame")
        if panel.x.label:
            self.text((wall + end) / 2, frame.height - 6, panel.x.label, anchor="middle")
        if panel.y.label:
            middle = (roof + floor) / 2
            turned = f' transform="rotate(-90 15 {middle:.1f})"'
            self.text(15, middle, panel.y.label, anchor="middle", more=turned)
        if panel.title:
            title = f"{panel.title}: {panel.remark}" if panel.remark else panel.title
            self.text(
                min(wall, 54),
                14,
                shortened_title(title, frame),
                kind="text",
                more=' font-weight="600"',
            )

    def _letters(self, room: float) -> int:
        """Number of letters that fit beside the y axis, limited to those of a wide drawing."""
        return max(4, min(24, int((room - 30) / character(self.panel))))

    @staticmethod
    def _most(axis: Axis, length: float, apart: float, apart_names: float) -> int:
        """Number of ticks that fit on an axis."""
        return max(3, int(length / (apart_names if axis.names else apart)))


def shortened_title(title: str, frame: Frame) -> str:
    """A title cut at the edge of the canvas."""
    most = int((frame.width - min(frame.left, 54)) / (CHARACTER + 0.5))
    return title if len(title) <= most else f"{title[: most - 1]}…"
