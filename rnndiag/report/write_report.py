"""`rnndiag.write_report`: from a run to its page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rnndiag.errors import BadArgument, RunUnreadable
from rnndiag.health import Config, check, look, read_config
from rnndiag.report.context import Context
from rnndiag.report.page import write_page
from rnndiag.store.reader import StoredRun

MOST_LAYERS = 2_000
"""A page about more layers would help nobody, and a damaged or hostile run may claim any number of them."""


@np.errstate(all="ignore")  # numbers that are not finite are what a report is there to show
def report_context(
    run: StoredRun | str | os.PathLike[str],
    baseline: StoredRun | str | Path | None = None,
    config: Config | str | Path | Mapping[str, Any] | None = None,
    layer: str = "",
) -> Context:
    """A run with its findings, however short it is, and the baseline run where the baseline is one."""
    opened = run if isinstance(run, StoredRun) else StoredRun(run)
    if len(opened.layers) > MOST_LAYERS:
        raise RunUnreadable(
            f"{opened.name} claims {len(opened.layers)} layers, and a report shows at most {MOST_LAYERS}.",
            "It may be damaged: `rnndiag verify` reads every byte of it.",
        )
    if layer and layer not in opened.layers:
        raise BadArgument(
            f"{opened.name} has no layer {layer!r}.", f"It has {', '.join(opened.layers)}."
        )
    settings = read_config(config)
    old = settings.baseline if baseline is None else baseline
    if not len(opened.steps):
        findings = []
    elif old is None:
        findings = look(opened, settings)
    else:
        findings = check(opened, baseline=old, config=settings)
    if old is not None and not isinstance(old, StoredRun):
        old = StoredRun(old) if Path(old).is_dir() else None
    return Context(opened, tuple(findings), old, settings, layer)


def write_report(
    run: StoredRun | str | os.PathLike[str],
    path: str | os.PathLike[str] = "report.html",
    baseline: StoredRun | str | Path | None = None,
) -> Path:
    """Write one HTML page about a run, judged against `baseline` if one is given; the page's path."""
    return write_page(report_context(run, baseline), path)
