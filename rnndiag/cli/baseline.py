"""`rnndiag baseline`: store the numbers of these runs, with which later runs are compared."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


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
    parser.add_argument(
        "--snapshot",
        metavar="DIR",
        help="store the numbers that a frozen snapshot gives now (needs torch)",
    )
    parser.add_argument(
        "--trust", action="store_true", help="also run a factory that lies inside of the snapshot"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="pyproject.toml to read (default: the nearest one)"
    )
    parser.add_argument(
        "--min-recordings", type=int, metavar="N", help="take runs of at least N recordings"
    )
    parser.add_argument(
        "--unfinished",
        action="store_true",
        help="also take a run that was cut short or is still running",
    )


def run(args: argparse.Namespace) -> int:
    """Measure the runs, print old -> new numbers, and write the baseline."""
    if bool(args.runs) == bool(args.snapshot):
        return _usage("Name either runs or --snapshot DIR.")
    if args.snapshot:
        return _accept_snapshot(Path(args.snapshot), args.output, args.trust)
    if not args.output:
        return _usage("Name the file to write with -o FILE.")
    return _accept_runs(args)


def _usage(text: str) -> int:
    sys.stderr.write(f"rnndiag baseline: {text}\nsee: rnndiag baseline --help\n")
    return 2


def _accept_snapshot(folder: Path, output: str | None, trust: bool) -> int:
    from rnndiag.health.frozen import NUMBERS, factory_of, store_numbers
    from rnndiag.health.torch_side import ask

    factory = factory_of(folder, trust)
    sys.stderr.write(f"rnndiag: running the code that the snapshot names: {factory}\n")
    path = Path(output) if output else folder / NUMBERS
    for line in store_numbers(path, ask("frozen.snapshot", ["measure", str(folder)])):
        sys.stdout.write(f"  {line}\n")
    sys.stdout.write(f"{path}: written\n")
    return 0


def _accept_runs(args: argparse.Namespace) -> int:
    from rnndiag.cli.check import configuration
    from rnndiag.errors import BadArgument, CannotJudge
    from rnndiag.health.baseline import changes, measure, read_baseline, write_baseline
    from rnndiag.health.gate import open_all, require_enough, require_sound

    config = configuration(args.config, args.min_recordings)
    if args.unfinished:
        config = config.with_unfinished()
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
    try:
        write_baseline(made, path)
    except OSError as error:
        raise BadArgument(
            f"{path} cannot be written: {error.strerror or error}.", "Name another file."
        ) from error
    for line in changes(old, made):
        sys.stdout.write(f"  {line}\n")
    count = len(made.runs)
    sys.stdout.write(
        f"{path}: {count} run{'s' if count != 1 else ''}, {'replaced' if old else 'new'}\n"
    )
    if count < config.min_baseline_runs:
        sys.stdout.write(
            f"With {count} of {config.min_baseline_runs} runs the noise between seeds is not known: "
            "changes are judged by the percentage `shift` alone.\n"
        )
    return 0
