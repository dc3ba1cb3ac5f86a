"""`rnndiag report RUN`: one HTML page about a run."""

from __future__ import annotations

import argparse
import json
import sys
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rnndiag.report.context import Context

LARGE = 1_000_000
"""Size in bytes above which a page is called large: browsers open it, mail systems may refuse it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = "exit codes: 0 written; 2 usage error; 3 the run cannot be read or compared"
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the page to write (default: RUN/report.html)"
    )
    parser.add_argument(
        "--layer", default="", help="the layer to show (default: that of the verdict)"
    )
    parser.add_argument("--baseline", help="a baseline file or a run to compare with")
    parser.add_argument("--config", metavar="FILE", help="a pyproject.toml with [tool.rnndiag]")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="write the page anew as a running fit records, until it ends",
    )
    parser.add_argument(
        "--every",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="time between two reads of --watch (5)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--json", metavar="FILE", help="also write the page's numbers as JSON")
    parser.add_argument(
        "--figures", metavar="DIR", help="also write each figure as a file (needs matplotlib)"
    )
    parser.add_argument(
        "--format", choices=("pdf", "svg", "png"), default="pdf", help="format of those files (pdf)"
    )
    parser.add_argument(
        "--width",
        type=float,
        metavar="INCHES",
        help="width of those figures; 3.3 for one column of a paper",
    )


def run(args: argparse.Namespace) -> int:
    """Write the page; print the verdict and the path of the page; returns the exit code."""
    from rnndiag.report.numbers import run_numbers
    from rnndiag.report.page import write_page
    from rnndiag.report.progress import progress
    from rnndiag.report.write_report import report_context
    from rnndiag.store.whole_files import write_whole

    if args.watch:
        return _watch(args)
    with progress(f"reading {args.run}"):
        context = report_context(args.run, args.baseline, args.config, args.layer)
        page = write_page(context, _target(args))
        if args.json:
            text = json.dumps(run_numbers(context), indent=1)
            write_whole(args.json, f"{text}\n", durable=False)
    found = context.verdict
    sys.stdout.write(f"{found.shape} {found.word}  {found.sentence}\n{page}\n")
    warn_of_size(page)
    if args.figures:
        _figures(context, args.figures, args.format, args.width)
    if args.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def _target(args: argparse.Namespace) -> Path:
    """Path of the page: inside of the run unless --output is given."""
    from rnndiag.errors import BadArgument

    if not args.output and "://" in args.run:
        raise BadArgument("A page is not written behind a URL.", "Name a file with -o FILE.")
    return Path(args.output or Path(args.run) / "report.html")


def _watch(args: argparse.Namespace) -> int:
    """Write the page now, and again whenever the run has grown or its status has changed, until the run has ended."""
    from rnndiag.errors import BadArgument
    from rnndiag.report.page import write_page
    from rnndiag.report.write_report import report_context

    if not args.every > 0:
        raise BadArgument(f"--every {args.every} is no time to wait.", "Give seconds, such as 5.")
    shown: tuple[int, str] | None = None
    while True:
        context = report_context(args.run, args.baseline, args.config, args.layer)
        running = context.run.status.word == "running"
        state = (len(context.run), context.run.status.word)
        if state != shown:
            reload = max(2, round(args.every)) if running else 0
            page = write_page(context, _target(args), reload)
            sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {state[0]} recordings  {page}\n")
            sys.stdout.flush()
            if args.open and shown is None:
                webbrowser.open(page.resolve().as_uri())
            shown = state
        if not running:
            return 0
        time.sleep(args.every)


def warn_of_size(page: Path) -> None:
    """Print one sentence if a page is large."""
    size = page.stat().st_size
    if size > LARGE:
        sys.stderr.write(f"rnndiag: the page is large: {size / 1e6:.1f} MB.\n")


def _figures(context: Context, folder: str, form: str, width: float | None) -> None:
    from rnndiag import plot

    written, missing = plot.save_figures(context, folder, form, width)
    sys.stdout.write("".join(f"{file}\n" for file in written))
    sys.stdout.write("".join(f"not drawn: {sentence}\n" for sentence in missing))
