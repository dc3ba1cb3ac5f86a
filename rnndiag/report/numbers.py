"""The numbers of the page as JSON, as `--json` writes them and the page embeds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rnndiag.health.finding import Finding
from rnndiag.report.context import Context
from rnndiag.report.figure_data import FigureData
from rnndiag.report.figures import ORDER
from rnndiag.report.layers import LayerRow, layer_rows
from rnndiag.report.strip import tiles
from rnndiag.report.unfit import figure_of


def page_numbers(
    context: Context,
    figures: Sequence[FigureData],
    findings: Sequence[Finding],
    layers: Sequence[LayerRow],
) -> dict[str, Any]:
    """Verdict, headline numbers, checks, layers and each figure's finding and table."""
    found = context.verdict
    return {
        "run": context.run.name,
        "recordings": len(context.run),
        "verdict": {"word": found.word, "sentence": found.sentence, "exit_code": found.exit_code},
        "headline": [vars(tile) for tile in tiles(context)],
        "checks": [finding.as_json() for finding in findings],
        "layers": [vars(row) for row in layers],
        "figures": [
            {
                "name": data.name,
                "question": data.question,
                "finding": data.finding,
                "absent": data.absent,
                "table": None
                if data.table is None
                else {
                    "head": list(data.table.head),
                    "rows": [list(row) for row in data.table.rows],
                },
            }
            for data in figures
        ],
    }


@np.errstate(all="ignore")
def run_numbers(context: Context) -> dict[str, Any]:
    """`page_numbers` with every figure computed."""
    figures = [figure_of(name, context) for name in ORDER]
    return page_numbers(context, figures, context.findings, layer_rows(context))
