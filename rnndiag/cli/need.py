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


def run(args: argparse.Namespace) -> int:
    """Measure in a process with torch, print the verdict and the curves."""
    from rnndiag.health.torch_side import ask
    from rnndiag.stats.need.as_json import need_text

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
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0
