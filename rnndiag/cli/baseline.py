"""`rnndiag baseline`: store the numbers of these runs, with which later runs are compared."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rnndiag.cli.check import (
    add_common_options,
    announce_factory,
    configuration,
    write_file,
)
from rnndiag.errors import BadArgument, CannotJudge


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="run directories: seeds of one program, 5 or more"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the JSON file to write, and to commit",
    )
    add_common_options(
        parser,
        snapshot="store the numbers that a frozen snapshot gives now (needs torch)",
        min_recordings="take runs of at least N recordings",
        unfinished="also take a run that was cut short or is still running",
    )


def run(args: argparse.Namespace) -> int:
    """Measure the runs, print old -> new numbers, and write the baseline."""
    if bool(args.runs) == bool(args.snapshot):
        raise BadArgument("Name either runs or --snapshot DIR.", "See: rnndiag baseline --help")
    if args.snapshot:
        return _accept_snapshot(Path(args.snapshot), args.output, args.trust)
    if not args.output:
        raise BadArgument("Name the file to write with -o FILE.", "See: rnndiag baseline --help")
    return _accept_runs(args)


def _accept_snapshot(folder: Path, output: str | None, trust: bool) -> int:
    from rnndiag.health.frozen import NUMBERS, store_numbers
    from rnndiag.health.torch_side import ask

    announce_factory(folder, trust)
    path = Path(output) if output else folder / NUMBERS
    for line in store_numbers(path, ask("frozen.snapshot", ["measure", str(folder)])):
        sys.stdout.write(f"  {line}\n")
    sys.stdout.write(f"{path}: written\n")
    return 0


def _accept_runs(args: argparse.Namespace) -> int:
    from rnndiag.health.baseline import changes, measure, read_baseline
    from rnndiag.health.gate import open_all, require_enough, require_sound
    from rnndiag.store.text import counted

    config = configuration(args)
    runs = open_all(args.runs)
    for one in runs:
        require_enough(one, config)
        require_sound(one, config)
    made = measure(runs, config)
    path = Path(args.output)
    try:
        old = read_baseline(path) if path.exists() else None
    except CannotJudge as reason:
        sys.stderr.write(f"rnndiag: the old baseline is replaced. {reason.what}\n")
        old = None
    write_file(path, made.as_json())
    for line in changes(old, made):
        sys.stdout.write(f"  {line}\n")
    count = len(made.runs)
    sys.stdout.write(f"{path}: {counted(count, 'run')}, {'replaced' if old else 'new'}\n")
    if count < config.min_baseline_runs:
        sys.stdout.write(
            f"With {count} of {config.min_baseline_runs} runs the noise between seeds is not known: "
            "changes are judged by the percentage `shift` alone.\n"
        )
    return 0
