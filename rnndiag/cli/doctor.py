"""`rnndiag doctor`: prints versions and optional packages, and tries a small recording; exit code 1 if that fails."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = {
    "numpy": "needed",
    "scipy": "needed",
    "jinja2": "reports",
    "matplotlib": "figures for papers",
    "pandas": "to_frame",
    "xarray": "to_xarray",
    "fsspec": "runs behind a URL",
    "pytest": "the rnndiag fixture",
}
_SIGNS = {"ok": "ok   ", "fault": "FAULT", "absent": "-    "}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON, for a bug report")


def run(args: argparse.Namespace) -> int:
    """Print what was found; the exit code is 1 if something that is installed does not work, else 0."""
    from rnndiag.store.text import counted

    rows = [*_here(), *_torch_side()]
    if args.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    else:
        for row in rows:
            sys.stdout.write(f"{_SIGNS[row['state']]}  {row['name']:<18} {row['found']}\n")
            if row["remedy"] and row["state"] != "ok":
                sys.stdout.write(f"{'':<26} {row['remedy']}\n")
    faults = sum(row["state"] == "fault" for row in rows)
    if not args.json:
        verdict = counted(faults, "fault") if faults else "no faults"
        sys.stdout.write(f"\n{verdict}\n")
    return 1 if faults else 0


def _here() -> list[dict[str, str]]:
    from rnndiag import __version__

    rows = [
        _row("rnndiag", "ok", __version__),
        _row(
            "python",
            "ok",
            f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        ),
    ]
    return [*rows, *(_package(name, purpose) for name, purpose in PACKAGES.items())]


def _package(name: str, purpose: str) -> dict[str, str]:
    try:
        return _row(name, "ok", version(name))
    except PackageNotFoundError:
        state = "fault" if purpose == "needed" else "absent"
        return _row(name, state, f"not installed ({purpose})")


def _torch_side() -> list[dict[str, str]]:
    from rnndiag.errors import RnndiagError
    from rnndiag.health.torch_side import ask

    try:
        found = ask("doctor", [])
    except RnndiagError as error:
        return [_row("torch", "fault", error.what, error.remedy)]
    return [
        _row(
            str(row.get("name")),
            str(row.get("state")),
            str(row.get("found")),
            str(row.get("remedy") or ""),
        )
        for row in found.get("rows", [])
    ]


def _row(name: str, state: str, found: str, remedy: str = "") -> dict[str, str]:
    return {"name": name, "state": state, "found": found, "remedy": remedy}
