"""`rnndiag runs DIR`: one line per run, sorted; `--html` writes an index page that links their reports."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rnndiag.report.run_list import RunRow

HEAD = ("run", "status", "reach", "loss", "step", "written", "headline")
NARROWEST_HEADLINE = 30
"""Smallest number of characters for a headline, however narrow the terminal."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = "exit codes: 0 listed; 2 usage error; 3 there is no run, or none can be read"
    parser.add_argument(
        "where",
        metavar="DIR",
        nargs="*",
        default=["runs"],
        help="folders or patterns (default: runs)",
    )
    parser.add_argument(
        "--sort",
        default="age",
        metavar="COLUMN",
        help="name, status, headline, reach, loss, steps or age",
    )
    parser.add_argument("--reverse", action="store_true", help="reverse the order")
    parser.add_argument(
        "--html", metavar="FILE", help="also write an index page that links reports"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def run(args: argparse.Namespace) -> int:
    """Print one line per run; the exit code."""
    from rnndiag.report.run_list import run_row, sorted_rows, write_index
    from rnndiag.run.runs import open_runs
    from rnndiag.store.safe_text import printable

    found = open_runs(args.where)
    rows = [run_row(one, name) for one, name in zip(found, found.names, strict=True)]
    rows = sorted_rows(rows, args.sort, args.reverse)
    if args.json:
        text = json.dumps([asdict(row) for row in rows], indent=1)
        sys.stdout.write(f"{text}\n")
    else:
        sys.stdout.write("".join(f"{printable(line)}\n" for line in table(rows)))
    for sentence in found.unreadable:
        sys.stderr.write(f"rnndiag: not listed: {printable(sentence)}\n")
    if args.html:
        sys.stdout.write(f"{write_index(rows, args.html)}\n")
    return 0 if rows else 3


def table(rows: Sequence[RunRow], width: int | None = None, now: float | None = None) -> list[str]:
    """The rows as lines of text; the headline is cut to the width of the terminal."""
    from rnndiag.report.run_list import number

    moment = time.time() if now is None else now
    cells = [HEAD] + [
        (
            row.name,
            row.status,
            number(row.reach),
            number(row.loss),
            str(row.step),
            f"{row.age(moment)} ago",
            row.headline,
        )
        for row in rows
    ]
    columns = [max(len(line[k]) for line in cells) for k in range(len(HEAD) - 1)]
    room = (width or shutil.get_terminal_size((120, 24)).columns) - sum(columns) - 2 * len(columns)
    room = max(room, NARROWEST_HEADLINE)
    lines = []
    for line in cells:
        left = "  ".join(
            f"{cell:>{size}}" if k in (2, 3, 4) else f"{cell:<{size}}"
            for k, (cell, size) in enumerate(zip(line[:-1], columns, strict=True))
        )
        last = line[-1] if len(line[-1]) <= room else f"{line[-1][: room - 1]}…"
        lines.append(f"{left}  {last}")
    return lines
