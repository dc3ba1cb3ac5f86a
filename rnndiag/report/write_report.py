"""`rnndiag.write_report`: from a run to its page."""

from __future__ import annotations

import os
from pathlib import Path

from rnndiag.health import check
from rnndiag.report.context import Context
from rnndiag.report.page import write_page
from rnndiag.run.run import Run, open_run


def report_context(
    run: Run | str | os.PathLike[str],
    baseline: Run | str | Path | None = None,
) -> Context:
    """A run with its findings, and the baseline run where the baseline is one."""
    opened = run if isinstance(run, Run) else open_run(run)
    findings = check(opened, baseline=baseline) if len(opened.steps) else []
    old = baseline
    if old is not None and not isinstance(old, Run):
        old = open_run(old) if Path(old).is_dir() else None
    return Context(opened, tuple(findings), old)


def write_report(
    run: Run | str | os.PathLike[str],
    path: str | os.PathLike[str] = "report.html",
    baseline: Run | str | Path | None = None,
) -> Path:
    """Write one HTML page about a run, judged against `baseline` if one is given; the page's path."""
    return write_page(report_context(run, baseline), path)
