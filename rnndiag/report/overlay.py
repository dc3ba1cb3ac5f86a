"""One figure from the same figure of several runs: the first curve of each, panel by panel, on common axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rnndiag.report.figure_data import Axis, FigureData, Line, Panel, Table, Tone
from rnndiag.report.ticks import number

TONES: tuple[Tone, ...] = ("main", "second", "third", "bound", "limit", "bad")
"""One tone per run, so their number limits the runs that can be overlaid."""


def overlay(figures: Sequence[FigureData], names: Sequence[str]) -> FigureData:
    """Combine the same figure of several runs. Runs without the figure are named in the notes."""
    told = list(zip(names, figures, strict=True))
    first = next((data for _, data in told if not data.absent), figures[0])
    if first.absent:
        return replace(first, absent=" ".join(f"{name}: {data.absent}" for name, data in told))
    titles = dict.fromkeys(panel.title for _, data in told for panel in data.panels if panel.lines)
    panels = tuple(_panel(title, told) for title in titles)
    missing = tuple(f"{name}: {data.absent}" for name, data in told if data.absent)
    finding = "\n".join(f"{name}: {data.finding}" for name, data in told if not data.absent)
    return FigureData(
        finding,
        f"One curve a run. {first.how_to_read}",
        panels,
        _table(panels),
        layer=first.layer,
        warnings=missing + tuple(f"{n}: {w}" for n, data in told for w in data.warnings),
        name=first.name,
        question=first.question,
    )


def _panel(title: str, told: Sequence[tuple[str, FigureData]]) -> Panel:
    lines, found = [], []
    for (name, data), tone in zip(told, TONES, strict=False):
        panel = next((p for p in data.panels if p.title == title and p.lines), None)
        if panel is not None:
            label = f"{name}: {panel.remark}" if panel.remark else name
            lines.append(replace(panel.lines[0], label=label, tone=tone))
            found.append(panel)
    return Panel(
        _joined([panel.x for panel in found]),
        _joined([panel.y for panel in found]),
        title,
        tuple(lines),
        marks=tuple(mark for mark in found[0].marks if mark.axis == "y"),
        allowed=found[0].allowed,
        notes=found[0].notes if len(found) == 1 else (),
        shape=found[0].shape,
    )


def _joined(axes: Sequence[Axis]) -> Axis:
    """A common axis for all runs; logarithmic only if it is for each of them."""
    scale = axes[0].scale if len({axis.scale for axis in axes}) == 1 else "linear"
    low, high = min(axis.low for axis in axes), max(axis.high for axis in axes)
    return Axis(axes[0].label, low, high, scale)


def _table(panels: Sequence[Panel]) -> Table | None:
    """The last value of each curve."""
    rows = []
    for panel in panels:
        for line in panel.lines:
            known = np.flatnonzero(np.isfinite(line.y))
            if known.size:
                rows.append((panel.title or panel.y.label, line.label, *_ends(line, known)))
    head = ("number", "run", "first value", "last value", f"last {panels[0].x.label or 'step'}")
    return Table(head, tuple(rows), (2, 3, 4)) if rows else None


def _ends(line: Line, known: np.ndarray) -> tuple[str, str, str]:
    first, last = float(line.y[known[0]]), float(line.y[known[-1]])
    return number(first), number(last), number(float(line.x[known[-1]]))
