"""`rnndiag completion SHELL`: prints a script that completes commands and options at the prompt of a shell."""

from __future__ import annotations

import argparse
import sys

SHELLS = ("bash", "zsh", "tcsh")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = "exit codes: 0 printed; 2 usage error, or shtab is not installed"
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"{', '.join(SHELLS)}")


def run(args: argparse.Namespace) -> int:
    """Print the script; returns the exit code."""
    from importlib import import_module

    from rnndiag.cli import COMMANDS
    from rnndiag.errors import NotInstalled

    try:
        import shtab
    except ImportError as error:
        raise NotInstalled(
            "Completion scripts are written by shtab, which is not installed.",
            "Write: pip install shtab",
        ) from error
    whole = argparse.ArgumentParser("rnndiag")
    whole.add_argument("-V", "--version", action="store_true", help="print the version")
    commands = whole.add_subparsers()
    for name, (module, about) in COMMANDS.items():
        import_module(module).configure(commands.add_parser(name, help=about, description=about))
    sys.stdout.write(f"{shtab.complete(whole, args.shell)}\n")
    return 0
