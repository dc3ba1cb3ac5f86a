"""The notebook view of a run: verdict and headline numbers as a few lines of HTML."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from rnndiag.errors import RnndiagError
from rnndiag.report.palette import TONES
from rnndiag.report.strip import tiles
from rnndiag.report.write_report import report_context
from rnndiag.store.reader import StoredRun

_TONES = {"fault": "limit", "unsure": "baseline", "well": "third"}


@np.errstate(all="ignore")
def verdict_strip(run: StoredRun) -> str:
    """Verdict and headline numbers of a run as HTML for a notebook.

    Args:
        run: The run.

    Returns:
        One `<div>`. Text and background have the colours of the notebook's own theme.

    Example:
        >>> html = rnndiag.verdict_strip(rnndiag.open_run("logs/exp1"))
        >>> html.startswith("<div")
        True
    """
    context = report_context(run)
    found = context.verdict
    colour = TONES[_TONES[found.kind]][0]
    cells = "".join(
        f'<td style="text-align:left;padding:4px 14px 4px 0;vertical-align:top">{escape(tile.name)}<br>'
        f"<b>{escape(tile.value)}</b><br><small>{escape(tile.remark)}</small></td>"
        for tile in tiles(context)
    )
    steps = f", steps {run.steps[0]} to {run.steps[-1]}" if run.steps.size else ""
    return (
        f'<div style="border-left:5px solid {colour};padding:4px 12px">'
        f"<small>{escape(run.name)} · {len(run)} recordings{steps} · {escape(run.status)}</small><br>"
        f"{found.shape} <b>{escape(found.word)}</b> {escape(found.sentence)}"
        f"<table><tr>{cells}</tr></table></div>"
    )


def run_html(run_dir: Path, otherwise: str) -> str:
    """The verdict and headline numbers of a run as HTML; `otherwise`, escaped, if there is no run."""
    try:
        run = StoredRun(run_dir)
        return verdict_strip(run) if len(run) else escape(otherwise)
    except RnndiagError:
        return escape(otherwise)
