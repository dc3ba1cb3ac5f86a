"""`rnndiag verify`: read every byte of runs and check every checksum."""

from __future__ import annotations

import argparse
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = (
        "exit codes: 0 whole; 1 something recorded is lost; 2 usage error; 3 a run cannot be read"
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    parser.add_argument(
        "--salvage", action="store_true", help="also read recordings whose open.json is damaged"
    )


def run(args: argparse.Namespace) -> int:
    """Verify each run and print what was found; the exit code."""
    from rnndiag.cli.show import limited
    from rnndiag.errors import RunUnreadable
    from rnndiag.run.run import open_run
    from rnndiag.store.safe_text import printable

    worst = 0
    for path in args.runs:
        try:
            one = open_run(path, args.salvage)
        except RunUnreadable as fault:
            sys.stderr.write(f"rnndiag: {printable(fault)}\n")
            worst = 3
            continue
        problems = one.verify()
        lost = [problem for problem in problems if problem.lost]
        word = "DAMAGED" if lost else "whole"
        sys.stdout.write(
            f"{printable(path)}: {word}, {len(one)} recordings of {len(one.ranks)} rank(s), {one.status}\n"
        )
        sys.stdout.write("".join(f"  {line}\n" for line in limited(problems)))
        worst = max(worst, int(bool(lost)))
    return worst
