"""The gallery's pages, made from the runs that are committed beside them: numpy only, no torch."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from reports.entries import ENTRIES, Entry
from reports.figure_json import figure_json
from rnndiag.report.context import Context
from rnndiag.report.figures import FIGURES, ORDER
from rnndiag.report.page import page
from rnndiag.report.write_report import report_context

HERE = Path(__file__).parent


INDEX = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>rnndiag: gallery of reports</title>
<style>
:root{{color-scheme:light dark}}
body{{max-width:960px;margin:0 auto;padding:18px 20px 60px;font:15px/1.5 system-ui,sans-serif}}
h1{{font-size:19px}}
li{{margin:0 0 14px}}
ul{{list-style:none;padding:0}}
</style>
</head>
<body>
<main>
<h1>Reports of eleven small runs</h1>
<p>Each was recorded from a program of lightning_modules by one command, <code>make gallery</code>, which takes a few
minutes on two CPU cores. The recorded runs are committed beside their pages.</p>
<ul>
{rows}
</ul>
</main>
</body>
</html>
"""


def context_of(entry: Entry) -> Context:
    """A committed run with its findings."""
    return report_context(HERE / entry.name / entry.name)


def figures_of(context: Context) -> str:
    """All figures of a run as JSON, one a line."""
    lines = [
        f"{json.dumps(name)}: "
        f"{json.dumps(figure_json(FIGURES[name].make(context)), ensure_ascii=False, separators=(',', ':'))}"
        for name in ORDER
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def index(found: list[tuple[Entry, Context]]) -> str:
    """The list of runs with their verdicts."""
    rows = []
    for entry, context in found:
        told = context.verdict
        rows.append(
            f'<li><a href="{entry.name}/report.html">{escape(entry.title)}</a><br>\n'
            f"{told.shape} <b>{escape(told.word)}</b> {escape(told.sentence)}</li>"
        )
    return INDEX.format(rows="\n".join(rows))


def write_pages() -> list[Path]:
    """Write index.html, and of every run its page and its figures' data."""
    found = [(entry, context_of(entry)) for entry in ENTRIES]
    written = []
    for entry, context in found:
        folder = HERE / entry.name
        (folder / "report.html").write_text(page(context), encoding="utf-8", newline="\n")
        (folder / "figures.json").write_text(figures_of(context), encoding="utf-8", newline="\n")
        written.append(folder / "report.html")
    (HERE / "index.html").write_text(index(found), encoding="utf-8", newline="\n")
    return [HERE / "index.html", *written]
