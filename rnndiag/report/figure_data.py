"""The data of a figure, independent of how it is drawn: the page's SVG and matplotlib use the same values.

A figure has one or more panels. Numbers on an axis of scale `log10` or `log2` are plain numbers, not logarithms, with
one exception: `Matrix.values` are log10 where the matrix is logarithmic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Scale = Literal["linear", "log10", "log2"]
Shape = Literal["wide", "low", "square"]
Tone = Literal["main", "second", "third", "baseline", "bound", "limit", "bad"]


@dataclass(frozen=True)
class Axis:
    """One axis: label, scale and limits. If `names` are given, they replace the numbers at the ticks."""

    label: str
    low: float
    high: float
    scale: Scale = "linear"
    names: tuple[str, ...] = ()
    """Labels of the integers 0, 1, 2, ...: layers, tokens, gates."""
    first: float = 0.0
    """Index that the first row or column of a matrix represents, ..."""
    every: float = 1.0
    """... and the distance to the next one."""


@dataclass(frozen=True)
class Line:
    """A curve. NaN is a gap; a curve of one point is drawn as a dot."""

    x: np.ndarray
    y: np.ndarray
    label: str = ""
    tone: Tone = "main"
    dots: bool = False


@dataclass(frozen=True)
class Band:
    """The area between two curves."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    label: str = ""
    strength: float = 0.3
    """Opacity; 0: slanted lines, for ranges that were not measured."""
    tone: Tone = "main"

    @property
    def hatched(self) -> bool:
        """Whether it is drawn as slanted lines over a rectangle."""
        return self.strength == 0

    @property
    def visible(self) -> bool:
        """Whether the area is wider than a line anywhere. An invisible band has no entry in the key."""
        apart = np.asarray(self.high, float) - np.asarray(self.low, float)
        size = np.maximum(np.abs(self.high), np.abs(self.low))
        with np.errstate(invalid="ignore"):
            return bool(np.any(apart > 1e-6 * np.maximum(size, 1e-300)))


@dataclass(frozen=True)
class Mark:
    """A straight line at one value of an axis, with a label."""

    axis: Literal["x", "y"]
    at: float
    label: str
    tone: Tone = "limit"


@dataclass(frozen=True)
class Bubble:
    """A labelled dot whose area is proportional to a third number."""

    x: float
    y: float
    area: float
    label: str
    tone: Tone = "main"


@dataclass(frozen=True)
class Dots:
    """A cloud of points. The shape of a point is given by its tone."""

    x: np.ndarray
    y: np.ndarray
    label: str = ""
    tone: Tone = "main"


@dataclass(frozen=True)
class Matrix:
    """Cells over two axes: row i is at y index i, column j at x index j, both from the low end.

    values are log10 of sizes (`log`) or plain numbers. NaN: there is no path; -inf of a logarithm: exactly zero; +inf:
    not finite.
    """

    values: np.ndarray
    low: float
    high: float
    log: bool = True
    label: str = ""
    diverging: bool = False
    frame: str = ""
    """Label of this matrix among several, such as `step 980`."""
    block: tuple[int, int] = (1, 1)
    """Number of rows and columns merged into one cell, which shows the largest of them."""

    @property
    def cell(self) -> str:
        """What one drawn cell covers, if cells were merged; else empty."""
        rows, columns = self.block
        return "" if self.block == (1, 1) else f"each cell is the largest of {rows} x {columns}"


@dataclass(frozen=True)
class Panel:
    """One pair of axes and what is drawn on it."""

    x: Axis
    y: Axis
    title: str = ""
    lines: tuple[Line, ...] = ()
    bands: tuple[Band, ...] = ()
    marks: tuple[Mark, ...] = ()
    bubbles: tuple[Bubble, ...] = ()
    dots: tuple[Dots, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    """If several, a slider selects one; they share the axes and the colour scale."""
    allowed: tuple[float, float] | None = None
    """The range of y that a check allows, drawn shaded."""
    notes: tuple[str, ...] = ()
    """Text inside the panel, such as 'below 1e-16 from lag 99: not drawn'."""
    circle: bool = False
    """Whether to draw the unit circle."""
    shape: Shape = "wide"
    remark: str = ""
    """Text after the title, such as the last value."""


@dataclass(frozen=True)
class Table:
    """Rows of text; `numeric` says which columns are right-aligned."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()


@dataclass(frozen=True)
class FigureData:
    """One figure of a report, as its figure module computed it from a run."""

    finding: str
    """The finding in words, computed from the numbers."""
    how_to_read: str
    panels: tuple[Panel, ...] = ()
    table: Table | None = None
    absent: str = ""
    """Why nothing is shown; empty if there is data."""
    layer: str = ""
    warnings: tuple[str, ...] = field(default=())
    """Sentences shown prominently, such as steps that were not finite."""
    name: str = ""
    question: str = ""
