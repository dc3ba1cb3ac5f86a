"""`rnndiag report RUN`: one HTML page about a run."""

from __future__ import annotations

import argparse
import json
import sys
import webbrowser
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("run", help="a run directory")
    parser.add_argument("-o", "--output", help="the page to write (default: RUN/report.html)")
    parser.add_argument("--baseline", help="a baseline file or a run to compare with")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--json", metavar="FILE", help="also write the page's numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from rnndiag.report.numbers import run_numbers
    from rnndiag.report.page import write_page
    from rnndiag.report.write_report import report_context

    context = report_context(args.run, args.baseline)
    page = write_page(context, args.output or Path(args.run) / "report.html")
    if args.json:
        Path(args.json).write_text(
            json.dumps(run_numbers(context), indent=1) + "\n", encoding="utf-8"
        )
    found = context.verdict
    sys.stdout.write(f"{found.shape} {found.word}  {found.sentence}\n{page}\n")
    if args.open:
        webbrowser.open(page.resolve().as_uri())
    return 0
