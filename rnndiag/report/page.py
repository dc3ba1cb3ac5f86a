"""The HTML page of a run: verdict, headline numbers, checks, layers, figures, remedies, and how it was measured."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from rnndiag.health.finding import STATUSES, Finding
from rnndiag.report.context import Context
from rnndiag.report.figure_data import FigureData, Panel
from rnndiag.report.figures import FIGURES, ORDER
from rnndiag.report.keys import colour_bar, key
from rnndiag.report.layers import layer_dates, layer_rows
from rnndiag.report.measured import measured
from rnndiag.report.numbers import page_numbers
from rnndiag.report.remedies import remedies
from rnndiag.report.strip import tiles
from rnndiag.report.svg import draw
from rnndiag.report.theme import stylesheet
from rnndiag.report.unfit import figure_of
from rnndiag.store.whole_files import write_whole

_UNSHOWABLE = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufdd0-\\ufdef\\ufffe\\uffff]"
)
"""What HTML does not allow, and marks that would turn the words around them from right to left."""


@dataclass(frozen=True)
class Picture:
    """One drawn panel, with its key and the notes that did not fit into it."""

    svg: str
    narrow: str
    """The same for a narrow screen; empty where the one drawing serves both: a matrix is not stored twice."""
    key: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One figure, drawn."""

    data: FigureData
    title: str
    pictures: tuple[Picture, ...]
    bar: str
    frames: tuple[str, ...]
    """Labels of the matrices that the slider offers."""
    small: bool


@np.errstate(all="ignore")  # what is not finite is shown as such, and no reason for a warning
def page(context: Context, reload_seconds: int = 0) -> str:
    """The whole page as text. The same run and version give the same bytes.

    Args:
        context: The run with its findings.
        reload_seconds: How often a browser loads the page again, for a fit that is watched; 0: never.
    """
    sections = sections_of(context)
    checks = ordered(context.findings)
    return render(
        "page.html",
        context=context,
        reload_seconds=reload_seconds,
        run=context.run,
        verdict=context.verdict,
        tiles=tiles(context),
        open_checks=[f for f in checks if needs_eyes(f)],
        folded_checks=[f for f in checks if not needs_eyes(f)],
        layers=layer_rows(context),
        dates=layer_dates(context),
        sections=sections,
        remedies=remedies(context.findings),
        measured=measured(context),
        numbers=embedded(page_numbers(context, [s.data for s in sections])),
    )


def render(template: str, **values: Any) -> str:
    """A template of the assets, filled in: every string is escaped but those that this package drew."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(asset),
    )
    script = asset("page.js")
    text = environment.get_template(template).render(
        style=stylesheet(asset("page.css")), script=script, policy=policy(script), **values
    )
    return _UNSHOWABLE.sub("\ufffd", text).lstrip("\n")


def policy(script: str) -> str:
    """The content security policy of a page: it loads nothing, sends nothing, and runs one script, its own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def needs_eyes(finding: Finding) -> bool:
    """Whether the page shows a finding open. Passes and plain statements are folded."""
    return finding.status in ("fail", "warn", "not_judged") or finding.notable


def asset(name: str) -> str:
    """The text of a file in the folder `assets`."""
    return files("rnndiag.report").joinpath("assets", name).read_text(encoding="utf-8")


def embedded(value: Any) -> str:
    """JSON for a script element. `<`, `>` and `&` are escaped, so that no text in it can end the element."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """The findings in the order of STATUSES, worst first; notable ones first within a status."""
    return sorted(findings, key=lambda f: (STATUSES.index(f.status), not f.notable, f.check))


def section(data: FigureData, title: str) -> Section:
    """One figure, drawn."""
    small = len(data.panels) > 2

    def said(panel: Panel) -> str:
        return f"{data.question} {panel.title} {data.finding}".strip()

    pictures = tuple(
        Picture(
            draw(panel, said(panel), "small" if small else "wide"),
            "" if small or panel.matrices else draw(panel, said(panel), "narrow"),
            tuple(key(panel)),
            panel.notes,
        )
        for panel in data.panels
    )
    matrices = [panel.matrices for panel in data.panels if panel.matrices]
    frames = tuple(m.frame for m in matrices[0]) if matrices and len(matrices[0]) > 1 else ()
    return Section(
        data, title, pictures, colour_bar(matrices[0][0]) if matrices else "", frames, small
    )


def sections_of(context: Context) -> list[Section]:
    """All figures of the page, computed and drawn."""
    return [section(figure_of(name, context), FIGURES[name].title) for name in ORDER]


def write_page(context: Context, path: str | os.PathLike[str], reload_seconds: int = 0) -> Path:
    """Write the page, whole or not at all; `reload_seconds` as in `page`."""
    return write_text(page(context, reload_seconds), path)


def write_text(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a page, whole or not at all."""
    return write_whole(path, text, durable=False)
