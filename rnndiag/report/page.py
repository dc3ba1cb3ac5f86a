"""The one HTML page: the verdict, the strip of headline numbers, checks, layers, figures, what to do, how measured."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rnndiag.health.finding import STATUSES, Finding
from rnndiag.report.context import Context
from rnndiag.report.figure_data import FigureData
from rnndiag.report.figures import FIGURES, ORDER
from rnndiag.report.layers import LayerRow, layer_rows
from rnndiag.report.measured import measured
from rnndiag.report.numbers import page_numbers
from rnndiag.report.remedies import remedies
from rnndiag.report.strip import Tile, tiles
from rnndiag.report.svg import Frame, colour_bar, draw
from rnndiag.report.theme import stylesheet

WIDE = Frame()
SMALL = Frame(width=300, height=170, left=54, right=12, top=24, bottom=34)
SQUARE = Frame(width=470, height=430)


@dataclass(frozen=True)
class Section:
    """One figure, drawn."""

    data: FigureData
    title: str
    pictures: tuple[str, ...]
    bar: str
    frames: tuple[str, ...]
    """Labels of the matrices that the slider offers."""
    small: bool


def page(context: Context) -> str:
    """The whole page as text. The same run and version give the same bytes."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(asset("page.html"))
    sections = [section(context, name) for name in ORDER if name in FIGURES]
    return template.render(
        context=context,
        run=context.run,
        verdict=context.verdict,
        tiles=tiles(context),
        checks=ordered(context.findings),
        layers=layer_rows(context),
        sections=sections,
        remedies=remedies(context.findings),
        measured=measured(context),
        numbers=embedded(page_numbers(context, [s.data for s in sections])),
        style=stylesheet(asset("page.css")),
        script=asset("page.js"),
    )


def asset(name: str) -> str:
    """A file that ships beside the report's code."""
    return files("rnndiag.report").joinpath("assets", name).read_text(encoding="utf-8")


def embedded(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end that element."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Failures first, then doubts, notes, passes."""
    return sorted(findings, key=lambda f: (STATUSES.index(f.status), not f.notable, f.check))


def section(context: Context, name: str) -> Section:
    """One figure computed and drawn."""
    figure = FIGURES[name]
    data = figure.make(context)
    small = len(data.panels) > 2
    pictures = tuple(
        draw(
            panel,
            f"{data.question} {panel.title} {data.finding}".strip(),
            SMALL if small else SQUARE if panel.circle or name == "F3" else WIDE,
        )
        for panel in data.panels
    )
    matrices = [panel.matrices for panel in data.panels if panel.matrices]
    return Section(
        data,
        figure.title,
        pictures,
        colour_bar(matrices[0][0]) if matrices else "",
        tuple(m.frame for m in matrices[0]) if matrices and len(matrices[0]) > 1 else (),
        small,
    )


def write_page(context: Context, path: str | os.PathLike[str]) -> Path:
    """Write the page, whole or not at all."""
    target = Path(path)
    text = page(context)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(target)
    return target


__all__ = ["LayerRow", "Section", "Tile", "page", "write_page"]
