"""`rnndiag compare A B [...]`: one HTML page about two or more runs."""

from __future__ import annotations

import argparse
import json
import sys
import webbrowser


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = (
        "four words for a change: identical, within noise, shifted, out of bounds. "
        "exit codes: 0 written (whatever changed: judge with `rnndiag check`); 2 usage error; 3 a run cannot be read"
    )
    parser.add_argument("run", metavar="A", help="the run that the others are compared with")
    parser.add_argument("others", metavar="B", nargs="+", help="other runs")
    parser.add_argument("-o", "--output", metavar="FILE", default="compare.html")
    parser.add_argument(
        "--layer", default="", help="the layer to show (default: that of the verdict on A)"
    )
    parser.add_argument("--config", metavar="FILE", help="a pyproject.toml with [tool.rnndiag]")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--json", metavar="FILE", help="also write the changes as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the page and print what changed; returns the exit code."""
    from rnndiag.cli.report import warn_of_size
    from rnndiag.report.compare_page import comparable, compare_page, heading, run_names
    from rnndiag.report.deltas import deltas
    from rnndiag.report.page import write_text
    from rnndiag.report.progress import progress
    from rnndiag.report.write_report import report_context
    from rnndiag.store.whole_files import write_whole

    with progress(f"reading {1 + len(args.others)} runs"):
        read = [report_context(path, None, args.config) for path in (args.run, *args.others)]
        contexts = comparable(read, args.layer)
        page = write_text(compare_page(contexts), args.output)
        changes = deltas(contexts, run_names(contexts))
    _, word, sentence = heading(changes)
    if args.json:
        text = json.dumps([vars(delta) for delta in changes], indent=1)
        write_whole(args.json, f"{text}\n", durable=False)
    sys.stdout.write(f"{word}  {sentence}\n{page}\n")
    warn_of_size(page)
    if args.open:
        webbrowser.open(page.resolve().as_uri())
    return 0
