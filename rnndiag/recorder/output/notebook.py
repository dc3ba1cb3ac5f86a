"""The notebook view of a callback or a recorder."""

from __future__ import annotations

from html import escape
from pathlib import Path

from rnndiag.errors import RnndiagError
from rnndiag.report.notebook import verdict_strip
from rnndiag.store.reader import StoredRun


def run_html(run_dir: Path, otherwise: str) -> str:
    """The verdict and headline numbers of a run as HTML; `otherwise`, escaped, if there is no run."""
    try:
        run = StoredRun(run_dir)
        return verdict_strip(run) if len(run) else escape(otherwise)
    except RnndiagError:
        return escape(otherwise)
