"""The HTML page of a run: verdict, headline numbers, checks, layers, figures, remedies, and how it was measured."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from rnndiag.health.diagnosis.finding import CHECK
from rnndiag.health.finding import Finding
from rnndiag.report.context import Context
from rnndiag.report.figure_data import FigureData, Panel
from rnndiag.report.figures import FIGURES, ORDER
from rnndiag.report.figures.figure import steps_shown
from rnndiag.report.keys import colour_bar, key
from rnndiag.report.layers import layer_dates, layer_rows
from rnndiag.report.measured import measured
from rnndiag.report.numbers import page_numbers
from rnndiag.report.palette import stylesheet
from rnndiag.report.strip import tiles
from rnndiag.report.svg import draw
from rnndiag.report.unfit import figure_of
from rnndiag.store.whole_files import write_whole

_UNSHOWABLE = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufdd0-\\ufdef\\ufffe\\uffff]"
)
"""Characters that HTML does not allow, and marks that reverse the direction of the following text."""

EVIDENCE = ("F1", "F9")
"""Candidates for the figure under the verdict: the first one with data is shown."""
MOST_ROWS, WORST = 8, 5
"""With more than MOST_ROWS layers the page shows the WORST open and folds the others; likewise for results of one
check."""
MOST_RESULTS = 100
"""Most results of one status that a check has on the page: a model of a thousand cells has a result for each."""


@dataclass(frozen=True)
class Picture:
    """One drawn panel, with its key and the notes that did not fit into it."""

    svg: str
    narrow: str
    """The drawing for a narrow screen; empty if one drawing serves both: a matrix is not stored twice."""
    key: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One figure with its drawings."""

    data: FigureData
    title: str
    pictures: tuple[Picture, ...]
    bar: str
    frames: tuple[str, ...]
    """Labels of the matrices that the slider offers."""
    small: bool
    steps: str = ""
    """The training steps that its data are from."""


@dataclass(frozen=True)
class Remedy:
    """One change to make, and the finding that recommends it."""

    what: str
    why: str
    layers: tuple[str, ...]


@np.errstate(all="ignore")  # numbers that are not finite are shown as such, without a numpy warning
def page(context: Context, reload_seconds: int = 0) -> str:
    """The whole page as text; equal run and version give equal bytes.

    Args:
        context: The run with its findings.
        reload_seconds: How often a browser loads the page again, for a fit that is watched; 0: never.
    """
    sections = sections_of(context)
    checks, unlisted = listed(sorted(context.findings, key=lambda one: (one.severity, one.check)))
    opened = open_checks(checks)
    are_open, are_listed = set(map(id, opened)), set(map(id, checks))
    in_json = [one for one in context.findings if id(one) in are_listed]
    folded = [one for one in checks if id(one) not in are_open]
    evidence = next((s for s in sections if s.data.name in EVIDENCE and not s.data.absent), None)
    rows = layer_rows(context)
    return render(
        "page.html",
        context=context,
        reload_seconds=reload_seconds,
        run=context.run,
        verdict=context.verdict,
        tiles=tiles(context),
        open_checks=opened,
        folded_checks=folded,
        folded_words=folded_words([*folded, *unlisted]),
        unlisted=len(unlisted),
        layers=rows if len(rows) <= MOST_ROWS else rows[:WORST],
        folded_layers=[] if len(rows) <= MOST_ROWS else rows[WORST:],
        dates=layer_dates(context),
        evidence=evidence,
        sections=[s for s in sections if s is not evidence and not s.data.absent],
        absent=[s for s in sections if s.data.absent],
        remedies=remedies(context.findings),
        most_names=WORST,
        measured=measured(context),
        numbers=embedded(page_numbers(context, [s.data for s in sections], in_json, rows)),
    )


def render(template: str, **values: Any) -> str:
    """Fill in a template of the assets: every string is escaped except those drawn by this package."""
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


def open_checks(checks: Sequence[Finding]) -> list[Finding]:
    """The findings shown open: all failures, and of the other results of a check the WORST notable ones."""
    shown: list[Finding] = []
    of_check: Counter[tuple[str, str]] = Counter()
    for one in checks:
        if one.status in ("fail", "warn", "not_judged") or one.notable:
            of_check[one.check, one.status] += 1
            if one.status == "fail" or of_check[one.check, one.status] <= WORST:
                shown.append(one)
    return shown


def listed(checks: Sequence[Finding]) -> tuple[list[Finding], list[Finding]]:
    """The findings that a page lists, at most MOST_RESULTS of one status of a check, and the others."""
    kept: list[Finding] = []
    others: list[Finding] = []
    of_check: Counter[tuple[str, str]] = Counter()
    for one in checks:
        of_check[one.check, one.status] += 1
        (kept if of_check[one.check, one.status] <= MOST_RESULTS else others).append(one)
    return kept, others


def folded_words(folded: Sequence[Finding]) -> str:
    """Summary of the folded findings: `6 passed, 35 not judged, 13 statements`."""
    count = Counter[str](one.status for one in folded)
    words = {"pass": "passed", "warn": "more warnings", "not_judged": "more not judged"}
    said = [f"{count[status]} {word}" for status, word in words.items() if count[status]]
    if count["note"]:
        said.append(f"{count['note']} statement{'' if count['note'] == 1 else 's'}")
    return ", ".join(said)


def asset(name: str) -> str:
    """The text of a file in the folder `assets`."""
    return files("rnndiag.report").joinpath("assets", name).read_text(encoding="utf-8")


def embedded(value: Any) -> str:
    """JSON for a script element. `<`, `>` and `&` are escaped, so that no text in it can end the element."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def remedies(findings: Sequence[Finding]) -> list[Remedy]:
    """The remedies of all findings, failures first. Passes and plain statements have none."""
    # In a diagnosed run, a notable number alone needs no remedy.
    diagnosed = any(f.check == CHECK for f in findings)
    wanted = [
        f
        for f in findings
        if f.remedy
        and (f.status in ("fail", "warn", "not_judged") or (f.notable and not diagnosed))
    ]
    wanted.sort(key=lambda f: f.severity)
    grouped: dict[str, list[Finding]] = {}
    for finding in wanted:
        grouped.setdefault(finding.remedy, []).append(finding)
    return [
        Remedy(what, found[0].message, tuple(dict.fromkeys(f.layer for f in found if f.layer)))
        for what, found in grouped.items()
    ]


def section(data: FigureData, title: str, steps: str = "") -> Section:
    """One figure with its drawings; `steps` are the training steps that its data are from."""
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
        data, title, pictures, colour_bar(matrices[0][0]) if matrices else "", frames, small, steps
    )


def sections_of(context: Context) -> list[Section]:
    """All figures of the page, computed and drawn."""
    made = {name: figure_of(name, context) for name in ORDER}
    return [
        section(data, FIGURES[name].title, steps_shown(name, data.layer or context.lead, context))
        for name, data in made.items()
    ]


def write_page(context: Context, path: str | os.PathLike[str], reload_seconds: int = 0) -> Path:
    """Write the page atomically; `reload_seconds` as in `page`."""
    return write_text(page(context, reload_seconds), path)


def write_text(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a page atomically."""
    return write_whole(path, text, durable=False)
