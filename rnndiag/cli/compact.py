"""`rnndiag compact`: reduces a finished run to a given size."""

from __future__ import annotations

import argparse
import re
import sys

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def size(text: str) -> int:
    """Parse a size in bytes, such as `500000000`, `500M` or `1GiB`."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]?i?)b?", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 500000000, 500M or 1GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Make a run that is not being written smaller: superseded and damaged recordings go first, then lag x lag "
        "matrices but every 10th, then every other recording, again and again. The first and the last stay."
    )
    parser.epilog = "exit codes: 0 it fits; 2 usage error, or it cannot be made so small; 3 the run cannot be read"
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument(
        "--max-bytes", type=size, required=True, metavar="N", help="size to reach: 500M, 1GiB, ..."
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be removed, and remove nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Compact the run and print what was removed; the exit code."""
    from rnndiag.store.compact import compact
    from rnndiag.store.safe_text import printable
    from rnndiag.store.text import size_text

    done = compact(args.run, args.max_bytes, args.dry_run)
    verb = "would take" if args.dry_run else "takes"
    sys.stdout.write(
        f"{printable(args.run)}: {verb} {size_text(done.after)} instead of {size_text(done.before)}\n"
        f"  {done.kept} of {done.recordings} recordings kept"
        f"{f', {done.superseded} superseded ones dropped' if done.superseded else ''}"
        f"{f', {done.damaged} damaged ones dropped' if done.damaged else ''}"
        f"{f', lag x lag matrices dropped from {done.without_matrices}' if done.without_matrices else ''}\n"
    )
    return 0
