"""Asks the torch wing something in a process of its own: this wing never imports torch."""

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


def ask(module: str, words: Sequence[str]) -> dict[str, Any]:
    """Run `python -m rnndiag.recorder.<module> WORDS --answer FILE` and return what it wrote; its errors are raised."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [
            sys.executable,
            "-m",
            f"rnndiag.recorder.{module}",
            *words,
            "--answer",
            str(answer),
        ]
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
    """PYTHONPATH of the other process: where this package is comes first, installed or not."""
    here = str(Path(errors.__file__).parents[1])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
