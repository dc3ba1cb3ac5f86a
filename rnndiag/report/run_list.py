"""The list of runs: one row per run, and an index page that links their reports."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rnndiag.errors import BadArgument, RnndiagError
from rnndiag.report.page import render, write_text
from rnndiag.report.write_report import report_context
from rnndiag.stats.headline import run_reach
from rnndiag.store.quantities import MODEL
from rnndiag.store.reader import StoredRun
from rnndiag.store.status import ago

REPORT = "report.html"
"""File name under which a fit and `rnndiag report` write a run's page."""


@dataclass(frozen=True)
class RunRow:
    """One line of `rnndiag runs`.

    `reach` is in time steps (NaN: not measured, inf: not reached), `loss` the last recorded one, `step` the last
    recorded training step, `written` the time of the last write in unix seconds.
    """

    name: str
    path: str
    status: str
    headline: str
    reach: float
    loss: float
    recordings: int
    step: int
    written: float

    def age(self, now: float) -> str:
        """How long ago the run was last written, in one unit."""
        return ago(max(0.0, now - self.written))


SORT_KEYS: dict[str, Callable[[RunRow], Any]] = {
    "name": lambda row: row.name,
    "status": lambda row: row.status,
    "headline": lambda row: row.headline,
    "reach": lambda row: (math.isnan(row.reach), row.reach),
    "loss": lambda row: (math.isnan(row.loss), row.loss),
    "steps": lambda row: -row.step,
    "age": lambda row: -row.written,
}
"""Column -> its sort key: short reach, low loss, many steps and young runs first."""


def run_row(run: StoredRun, name: str = "") -> RunRow:
    """The row of one run. For a run that cannot be judged the headline is the reason."""
    try:
        found = report_context(run).verdict
        headline = f"{found.word}: {found.sentence}"
    except RnndiagError as fault:
        headline = str(fault)
    steps = run.steps
    return RunRow(
        name or run.name,
        str(run.path),
        run.status.word,
        headline,
        _reach(run),
        _last_loss(run),
        len(steps),
        int(steps[-1]) if steps.size else 0,
        run.status.last,
    )


def _reach(run: StoredRun) -> float:
    try:
        return float(run_reach(run))
    except RnndiagError:
        return math.nan


def _last_loss(run: StoredRun) -> float:
    """The last finite loss among the recordings; if none is finite, the last one."""
    series = run.find("loss", MODEL) if ("loss", MODEL) in run else None
    if series is None or not series.steps.size:
        return math.nan
    values = np.asarray(series.values, float).reshape(len(series.steps), -1)[:, -1]
    known = values[np.isfinite(values)]
    return float(known[-1] if known.size else values[-1])


def sorted_rows(rows: Sequence[RunRow], by: str, reverse: bool = False) -> list[RunRow]:
    """Rows in the order of one column.

    Raises:
        BadArgument: There is no such column.
    """
    if by not in SORT_KEYS:
        raise BadArgument(
            f"Runs cannot be sorted by {by!r}.", f"Use one of {', '.join(SORT_KEYS)}."
        )
    return sorted(rows, key=SORT_KEYS[by], reverse=reverse)


def number(value: float) -> str:
    """A number with three significant digits; a dash if there is none."""
    return "–" if math.isnan(value) else f"{value:.3g}"


def write_index(
    rows: Sequence[RunRow], path: str | os.PathLike[str], now: float | None = None
) -> Path:
    """Write an HTML page with one row per run; a run that has a report is linked to it.

    Args:
        rows: The runs, in the order in which they are to stand.
        path: The page to write. Links are relative to its folder.
        now: Unix seconds that ages are counted from; None: now.
    """
    folder = Path(path).absolute().parent
    moment = time.time() if now is None else now
    links = [
        os.path.relpath(Path(row.path).absolute() / REPORT, folder)
        if (Path(row.path) / REPORT).is_file()
        else ""
        for row in rows
    ]
    text = render(
        "runs.html",
        rows=[
            {
                "row": row,
                "link": link.replace(os.sep, "/"),
                "reach": number(row.reach),
                "loss": number(row.loss),
                "age": row.age(moment),
            }
            for row, link in zip(rows, links, strict=True)
        ],
    )
    return write_text(text, path)
