"""`rnndiag snapshot`: freeze a model's weights and one batch, for `rnndiag check --snapshot` (needs torch)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "factory",
        metavar="FACTORY",
        help="package.module:function or file.py:function, returning (model, loss_fn, batch)",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="the folder to write, and to commit"
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="take the weights from this checkpoint (state_dict)"
    )


def run(args: argparse.Namespace) -> int:
    """Store weights, batch and their numbers; print old -> new numbers where a snapshot is replaced. The exit code."""
    from rnndiag.health.frozen import NUMBERS, store_numbers
    from rnndiag.health.torch_side import ask

    words = ["freeze", args.factory, args.output]
    if args.checkpoint:
        words += ["--checkpoint", args.checkpoint]
    new = ask("frozen.snapshot", words)
    for line in store_numbers(Path(args.output) / NUMBERS, new):
        sys.stdout.write(f"  {line}\n")
    sys.stdout.write(
        f"{args.output}: {len(new['numbers'])} numbers of {len(new['layers'])} layer runs\n"
    )
    sys.stdout.write(f"check it with:  rnndiag check --snapshot {args.output}\n")
    return 0
