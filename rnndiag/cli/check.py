"""`rnndiag check`: judge runs, or a frozen snapshot, against bounds and a baseline; the exit code is the result."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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
    parser.add_argument(
        "--config", metavar="FILE", help="pyproject.toml to read (default: the nearest one)"
    )
    parser.add_argument(
        "--min-recordings", type=int, metavar="N", help="judge runs of at least N recordings"
    )
    parser.add_argument(
        "--unfinished",
        action="store_true",
        help="also judge a run that was cut short or is still running",
    )
    parser.add_argument(
        "--snapshot",
        metavar="DIR",
        help="check a frozen snapshot in place of runs (needs torch); this runs the factory that its snapshot.json "
        "names",
    )
    parser.add_argument(
        "--trust", action="store_true", help="also run a factory that lies inside of the snapshot"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the findings as JSON")
    parser.add_argument("--junit", metavar="FILE", help="also write JUnit XML")
    parser.add_argument(
        "--markdown", metavar="FILE", help="also write Markdown, for a pull request"
    )
    parser.add_argument(
        "--github", action="store_true", help="also annotate a GitHub Actions log and step summary"
    )


def run(args: argparse.Namespace) -> int:
    """Judge the runs, print the findings, write the requested files, and return the exit code."""
    from rnndiag.errors import CannotJudge, RunUnreadable
    from rnndiag.health.outcome import CANNOT_JUDGE
    from rnndiag.health.result import cannot_judge
    from rnndiag.health.writers.console import console_text

    config = configuration(args.config, args.min_recordings)
    if args.unfinished:
        config = config.with_unfinished()
    if bool(args.runs) == bool(args.snapshot):
        return _usage("Name either runs or --snapshot DIR to check.")
    try:
        judgement = _judged(args, config)
    except (CannotJudge, RunUnreadable) as reason:
        judgement = cannot_judge(args.runs or [args.snapshot], reason)
        sys.stderr.write(_told(reason))
    else:
        sys.stdout.write(console_text(judgement))
        if judgement.outcome.code == CANNOT_JUDGE:
            sys.stderr.write(_why_not(judgement))
    _write(args, judgement)
    return judgement.outcome.code


def _judged(args: argparse.Namespace, config: Config) -> CheckResult:
    if args.snapshot:
        from rnndiag.health.frozen import factory_of, judge_snapshot

        folder = Path(args.snapshot)
        factory = factory_of(folder, args.trust)
        sys.stderr.write(f"rnndiag: running the code that the snapshot names: {factory}\n")
        return judge_snapshot(folder, args.baseline, args.trust)
    from rnndiag.health.result import evaluate_runs

    return evaluate_runs(args.runs, args.baseline, config)


def configuration(path: str | None, min_recordings: int | None = None) -> Config:
    """The configuration at `path`; if none is given, of the nearest pyproject.toml, or the defaults."""
    from dataclasses import replace

    from rnndiag.errors import require_whole
    from rnndiag.health.config import nearest_config, read_config

    config = read_config(path) if path else nearest_config(Path.cwd())
    if min_recordings is None:
        return config
    require_whole("--min-recordings", min_recordings, "Give a whole number of at least 1.")
    return replace(config, min_recordings=min_recordings)


def _why_not(judgement: CheckResult) -> str:
    """One line about the first check that was not judged, for logs that only show errors."""
    first = next((one for one in judgement.findings if one.status == "not_judged"), None)
    if first is None:
        return f"rnndiag: nothing was judged in {', '.join(judgement.paths)}\n"
    place = f" of {first.layer}" if first.layer else ""
    return f"rnndiag: not judged: {first.check}{place}: {first.message}\n"


def _told(reason: Exception) -> str:
    """The reason as printed, with the exit code at the end of its first paragraph."""
    what, remedy = getattr(reason, "what", str(reason)), getattr(reason, "remedy", "")
    *head, last = what.splitlines() or [""]
    first = "rnndiag: " + (head[0] if head else last)
    rest = [*head[1:], last] if head else []
    lines = [first, *rest]
    lines[-1] = f"{lines[-1]:<62} [exit 3]"
    return "\n".join([*lines, *(f"  {line.strip()}" for line in remedy.splitlines())]) + "\n"


def _usage(text: str) -> int:
    sys.stderr.write(f"rnndiag check: {text}\nsee: rnndiag check --help\n")
    return 2


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
    from rnndiag.errors import BadArgument
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
