"""`rnndiag need`: does the task of a frozen model need more memory than its gradient reaches? (needs torch)"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--snapshot",
        required=True,
        metavar="DIR",
        help="folder that `rnndiag snapshot` wrote; its batch should hold 128 sequences or more",
    )
    parser.add_argument("--layer", metavar="NAME", help="recurrent layer (default: the last)")
    parser.add_argument(
        "--beyond",
        type=int,
        metavar="W",
        help="window or sequence length of training (default: the reach of the gradient)",
    )
    parser.add_argument("--max-lag", type=int, metavar="D", help="longest lag to test")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the tests")
    parser.add_argument("--json", metavar="FILE", help="also write all numbers as JSON")
    parser.add_argument(
        "--trust", action="store_true", help="also run a factory that lies inside of the snapshot"
    )


def run(args: argparse.Namespace) -> int:
    """Run `memory_need` in a process with torch, and print the verdict and the curves; returns the exit code."""
    from rnndiag.cli.check import announce_factory, write_file
    from rnndiag.health.torch_side import ask
    from rnndiag.stats.need.as_json import need_text

    announce_factory(args.snapshot, args.trust)
    words = [args.snapshot, "--seed", str(args.seed)]
    for option, value in (
        ("--layer", args.layer),
        ("--beyond", args.beyond),
        ("--max-lag", args.max_lag),
    ):
        if value is not None:
            words += [option, str(value)]
    found = ask("frozen.need", words)
    sys.stdout.write(need_text(found))
    if args.json:
        write_file(Path(args.json), json.dumps(found, indent=1) + "\n")
    return 0
