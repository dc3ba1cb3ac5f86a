"""The console command `rnndiag`: imports the command's module, runs it, and turns every error into a sentence.

A command is one row of COMMANDS and one module with `configure(parser)` and `run(args) -> exit code`. Only the module
of the requested command is imported, so `rnndiag --help` is instant.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

from rnndiag.cli.safe_stream import SafeStream, safe_streams
from rnndiag.errors import (
    BadArgument,
    BadConfig,
    CannotJudge,
    NotInstalled,
    RnndiagError,
    RunNotWritten,
    RunUnreadable,
)

COMMANDS: dict[str, tuple[str, str]] = {
    "report": ("rnndiag.cli.report", "write one HTML page about a run"),
    "compare": ("rnndiag.cli.compare", "write one HTML page about two runs, side by side"),
    "runs": ("rnndiag.cli.runs", "list runs, one line each, or write an index page"),
    "check": (
        "rnndiag.cli.check",
        "judge runs by bounds and a baseline; the exit code is the answer",
    ),
    "baseline": ("rnndiag.cli.baseline", "store what runs have as the numbers to compare with"),
    "snapshot": ("rnndiag.cli.snapshot", "freeze a model and a batch, to be checked again later"),
    "need": ("rnndiag.cli.need", "say whether a frozen model's task needs more memory"),
    "show": ("rnndiag.cli.show", "say what is in a run: overview, quantities, problems"),
    "export": ("rnndiag.cli.export", "write the numbers of a run as csv, json or LaTeX"),
    "verify": ("rnndiag.cli.verify", "read every byte of runs and check every checksum"),
    "compact": ("rnndiag.cli.compact", "make a finished run smaller"),
    "completion": ("rnndiag.cli.completion", "print a script of completions for a shell"),
    "doctor": ("rnndiag.cli.doctor", "say what is installed, and whether recording works here"),
}

EXIT_CODES = (
    "exit codes: 0 fine; 1 a check failed or a run is damaged; 2 usage or configuration error;\n"
    "3 a run cannot be read or judged; 4 internal error"
)
USAGE, UNREADABLE, INTERNAL, INTERRUPTED = 2, 3, 4, 130

_CODES: tuple[tuple[type[RnndiagError], int], ...] = (
    (BadConfig, USAGE),
    (BadArgument, USAGE),
    (NotInstalled, USAGE),
    (RunNotWritten, USAGE),
    (CannotJudge, UNREADABLE),
    (RunUnreadable, UNREADABLE),
)


class _Parser(argparse.ArgumentParser):
    """Adds 'did you mean' to the error message for an unknown option."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, with the most similar option, and exit with 2."""
        unknown = message.partition("unrecognized arguments: ")[2].split()
        near = get_close_matches(unknown[0], self._option_string_actions, 1) if unknown else []
        super().error(f"{message}. Did you mean {near[0]!r}?" if near else message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Prints no traceback unless RNNDIAG_TRACEBACK is set."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # a terminal that cannot show a character still gets the others
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with safe_streams():
        return _run(words)


def _run(words: list[str]) -> int:
    try:
        code = _command(words)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except RnndiagError as fault:
        _trace()
        return _tell(
            str(fault), next((code for kind, code in _CODES if isinstance(fault, kind)), INTERNAL)
        )
    except KeyboardInterrupt:
        return _tell("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # the reader of the output closed the pipe; avoid Python's error message at exit
        stream = sys.stdout.raw if isinstance(sys.stdout, SafeStream) else sys.stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 0
    except OSError as fault:
        _trace()
        where = f" ({fault.filename})" if fault.filename else ""
        return _tell(f"{fault.strerror or fault}{where}.", USAGE)
    except Exception as fault:  # noqa: BLE001 - a traceback would exit with 1, which means that a check failed
        _trace()
        what = f"internal error: {type(fault).__name__}: {fault}."
        return _tell(f"{what} Set RNNDIAG_TRACEBACK=1 to see where, and report it.", INTERNAL)


def _command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(overview())
        return 0 if words else USAGE
    if words[0] in ("-V", "--version"):
        from rnndiag import __version__

        sys.stdout.write(f"rnndiag {__version__}\n")
        return 0
    name = words[0]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"Did you mean '{near[0]}'?" if near else f"It is one of {', '.join(COMMANDS)}."
        raise BadConfig(f"There is no command {name!r}.", hint)
    module = import_module(COMMANDS[name][0])
    about = COMMANDS[name][1]
    parser = _Parser(f"rnndiag {name}", description=f"{about[0].upper()}{about[1:]}.")
    module.configure(parser)
    code: int = module.run(parser.parse_args(words[1:]))
    return code


def overview() -> str:
    """The text of `rnndiag --help`."""
    rows = "".join(f"  {name:10s} {about}\n" for name, (_, about) in COMMANDS.items())
    return (
        "usage: rnndiag COMMAND ...\n\nGradient diagnostics for recurrent nets.\n\n"
        f"{rows}\n`rnndiag COMMAND --help` says more.\n{EXIT_CODES}\n"
    )


def _tell(sentence: str, code: int) -> int:
    from rnndiag.store.safe_text import printable

    sys.stdout.flush()
    sys.stderr.write(f"rnndiag: {printable(sentence)}\n")
    return code


def _trace() -> None:
    if os.environ.get("RNNDIAG_TRACEBACK"):
        traceback.print_exc()
