"""Runs a module of the torch side of rnndiag in another process: the health package never imports torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rnndiag import errors
from rnndiag.errors import CannotJudge, NotInstalled, RnndiagError

PATIENCE_SECONDS = 600

# `python -m` and `python -c` put the working directory first on the search path, where a file called torch.py or
# json.py would be imported in place of the package. `-P` leaves it out, but only from Python 3.11 on.
_START = (
    "import sys; sys.path[:] = sys.path[1:]; "
    "import runpy; sys.argv[:] = sys.argv[1:]; runpy.run_module(sys.argv[0], None, '__main__', True)"
)


def ask(module: str, words: Sequence[str]) -> dict[str, Any]:
    """Run the module `rnndiag.recorder.<module>` with arguments `words` and return its answer; its errors are raised
    here.

    The working directory is not on its search path, so that nothing in it is imported by accident.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        name = f"rnndiag.recorder.{module}"
        command = [sys.executable, "-c", _START, name, *words, "--answer", str(answer)]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": _search_path()},
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise CannotJudge(
                f"The model did not answer within {PATIENCE_SECONDS} s.", "Use a smaller batch."
            ) from error
        try:
            content = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            if "No module named 'torch'" in done.stderr:
                raise NotInstalled(
                    "This needs torch, which is not installed.", "Install rnndiag[train]."
                ) from error
            raise CannotJudge(
                f"The model could not be run: {last}", "Run the factory by itself to see where."
            ) from error
    if isinstance(content, dict) and "error" in content:
        kind = getattr(errors, str(content["error"]), CannotJudge)
        known = isinstance(kind, type) and issubclass(kind, RnndiagError)
        raise (kind if known else CannotJudge)(str(content.get("what")), str(content.get("remedy")))
    if not isinstance(content, dict):
        raise CannotJudge("The torch side gave no answer.", "Report this.")
    return content


def _search_path() -> str:
    """PYTHONPATH of the other process: this package first; empty entries, which mean the working directory, are
    removed."""
    here = str(Path(errors.__file__).parents[1])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([here, *(entry for entry in given if entry)])
