"""`rnndiag.write_report`: writes the HTML page of a run."""

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
"""Runs with more layers are refused: a damaged or hostile run may claim any number."""


@np.errstate(all="ignore")  # a report must show numbers that are not finite, without numpy warnings
def report_context(
    run: StoredRun | str | os.PathLike[str],
    baseline: StoredRun | str | Path | None = None,
    config: Config | str | Path | Mapping[str, Any] | None = None,
    layer: str = "",
) -> Context:
    """A run with its findings, as needed for figures and page.

    Args:
        run: The run or its directory.
        baseline: A baseline file or a run to compare with. None: the one of the configuration, if any.
        config: Configuration, or the pyproject.toml that holds it. None: the nearest one.
        layer: The layer that single-layer figures show. Empty: the one of the verdict.

    Returns:
        The context. Its findings are empty if the run has no recording.

    Raises:
        RunUnreadable: The run claims more than MOST_LAYERS layers.
        BadArgument: The run has no such layer.
    """
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
    """Write one self-contained HTML page about a run.

    Args:
        run: The run or its directory.
        path: The file to write. It is replaced as a whole.
        baseline: A baseline file or a run to compare with. None: the one of the configuration, if any.

    Returns:
        The path of the page.

    Example:
        >>> rnndiag.write_report("logs/exp1", "page.html").name
        'page.html'
    """
    return write_page(report_context(run, baseline), path)
