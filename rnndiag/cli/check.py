"""`rnndiag check`: judge runs, or a frozen snapshot, against bounds and a baseline; the exit code is the result."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rnndiag.errors import BadArgument, CannotJudge, RunUnreadable, require_whole

if TYPE_CHECKING:
    from rnndiag.health.config import Config
    from rnndiag.health.result import CheckResult

EPILOG = """\
exit codes: 0 pass; 1 a check failed; 2 usage or configuration error; 3 cannot judge (unreadable run, too few
recordings, baseline missing or not comparable, nothing checked, proof failed); 4 internal error.
Bounds are read from [tool.rnndiag.checks] of the nearest pyproject.toml; without them only what is wrong for
everyone fails."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="run directory; several are seeds of one program"
    )
    parser.add_argument(
        "--baseline", metavar="B", help="file that `rnndiag baseline` wrote, or a run directory"
    )
    add_common_options(
        parser,
        snapshot="check a frozen snapshot in place of runs (needs torch); this runs the factory that its snapshot.json "
        "names",
        min_recordings="judge runs of at least N recordings",
        unfinished="also judge a run that was cut short or is still running",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the findings as JSON")
    parser.add_argument("--junit", metavar="FILE", help="also write JUnit XML")
    parser.add_argument(
        "--markdown", metavar="FILE", help="also write Markdown, for a pull request"
    )
    parser.add_argument(
        "--github", action="store_true", help="also annotate a GitHub Actions log and step summary"
    )


def add_common_options(
    parser: argparse.ArgumentParser, snapshot: str, min_recordings: str, unfinished: str
) -> None:
    """Add the options that choose what is judged, with the help of those that say what is done with it."""
    parser.add_argument(
        "--config", metavar="FILE", help="pyproject.toml to read (default: the nearest one)"
    )
    parser.add_argument("--min-recordings", type=int, metavar="N", help=min_recordings)
    parser.add_argument("--unfinished", action="store_true", help=unfinished)
    parser.add_argument("--snapshot", metavar="DIR", help=snapshot)
    parser.add_argument(
        "--trust", action="store_true", help="also run a factory that lies inside of the snapshot"
    )


def run(args: argparse.Namespace) -> int:
    """Judge the runs, print the findings, write the requested files, and return the exit code."""
    from rnndiag.health.outcome import CANNOT_JUDGE
    from rnndiag.health.result import cannot_judge
    from rnndiag.health.writers.console import console_text

    config = configuration(args)
    if bool(args.runs) == bool(args.snapshot):
        raise BadArgument(
            "Name either runs or --snapshot DIR to check.", "See: rnndiag check --help"
        )
    try:
        judgement = _checked(args, config)
    except (CannotJudge, RunUnreadable) as reason:
        judgement = cannot_judge(args.runs or [args.snapshot], reason)
        sys.stderr.write(_reason_text(reason))
    else:
        sys.stdout.write(console_text(judgement))
        if judgement.outcome.code == CANNOT_JUDGE:
            sys.stderr.write(_why_not(judgement))
    _write(args, judgement)
    return judgement.outcome.code


def _checked(args: argparse.Namespace, config: Config) -> CheckResult:
    if args.snapshot:
        from rnndiag.health.frozen import judge_snapshot

        announce_factory(args.snapshot, args.trust)
        return judge_snapshot(Path(args.snapshot), args.baseline, args.trust)
    from rnndiag.health.result import evaluate_runs

    return evaluate_runs(args.runs, args.baseline, config)


def announce_factory(folder: str | Path, trust: bool) -> None:
    """Say whose code is about to be run; raises CannotJudge if the snapshot brings it along and is not trusted."""
    from rnndiag.health.frozen import factory_of

    factory = factory_of(Path(folder), trust)
    sys.stderr.write(f"rnndiag: running the code that the snapshot names: {factory}\n")


def configuration(args: argparse.Namespace) -> Config:
    """The configuration of --config, else of the nearest pyproject.toml, changed by the other options."""
    from rnndiag.health.config import nearest_config, read_config

    config = read_config(args.config) if args.config else nearest_config(Path.cwd())
    if (least := args.min_recordings) is not None:
        require_whole("--min-recordings", least, "Give a whole number of at least 1.")
        config = replace(config, min_recordings=least)
    return config.with_unfinished() if args.unfinished else config


def _why_not(judgement: CheckResult) -> str:
    """One line about the first check that was not judged, for logs that only show errors."""
    first = next((one for one in judgement.findings if one.status == "not_judged"), None)
    if first is None:
        return f"rnndiag: nothing was judged in {', '.join(judgement.paths)}\n"
    place = f" of {first.layer}" if first.layer else ""
    return f"rnndiag: not judged: {first.check}{place}: {first.message}\n"


def _reason_text(reason: Exception) -> str:
    """The reason as printed, with the exit code at the end of its first paragraph."""
    what, remedy = getattr(reason, "what", str(reason)), getattr(reason, "remedy", "")
    *head, last = what.splitlines() or [""]
    first = "rnndiag: " + (head[0] if head else last)
    rest = [*head[1:], last] if head else []
    lines = [first, *rest]
    lines[-1] = f"{lines[-1]:<62} [exit 3]"
    return "\n".join([*lines, *(f"  {line.strip()}" for line in remedy.splitlines())]) + "\n"


def _write(args: argparse.Namespace, judgement: CheckResult) -> None:
    from rnndiag.cli.safe_stream import write_as_is
    from rnndiag.health.writers.github import MOST_BYTES, annotation_lines, summary
    from rnndiag.health.writers.json_file import json_text
    from rnndiag.health.writers.junit import junit_text
    from rnndiag.health.writers.markdown import markdown_text

    writers: tuple[tuple[str | None, Callable[[CheckResult], str]], ...] = (
        (args.json, json_text),
        (args.junit, junit_text),
        (args.markdown, markdown_text),
    )
    for path, writer in writers:
        if path:
            write_file(Path(path), writer(judgement))
    if not args.github:
        return
    write_as_is(annotation_lines(judgement))
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if target:
        there = Path(target).stat().st_size if Path(target).is_file() else 0
        write_file(Path(target), summary(judgement, MOST_BYTES - there), append=True)


def write_file(path: Path, text: str, append: bool = False) -> None:
    """Write a file atomically, or append to one; raises BadArgument if that fails."""
    from rnndiag.store.whole_files import append_text, write_whole

    try:
        if append:
            append_text(path, text)
        else:
            write_whole(path, text, durable=False)
    except OSError as error:
        raise BadArgument(
            f"{path} cannot be written: {error.strerror or error}.", "Name another file."
        ) from error
