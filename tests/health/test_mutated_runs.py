"""Damaged runs through four commands: no traceback, no exit code 4, no write outside, no pass out of nothing."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from mutated_runs import mutants
from report_runs import write

from rnndiag.cli import main

CONFIG = '[tool.rnndiag.checks.reach]\nmin = 23\nchange = "off"\n'
"""The unharmed run reaches less far, so that it fails: an exit code of 0 would be a pass out of nothing."""


@pytest.mark.parametrize(("count", "seed"), [(6, 4), pytest.param(300, 17, marks=pytest.mark.long)])
def test_damaged_runs_end_no_command_and_never_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, seed: int
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write(tmp_path / "run", steps=range(0, 60, 10), T=12)
    (tmp_path / "pyproject.toml").write_text(CONFIG)
    assert main(["check", "run"]) == 1
    commands = (
        ["check", "run"],
        ["report", "run", "-o", "page.html"],
        ["compare", "run", "run", "-o", "compare.html"],
        ["show", "run"],
    )
    for number in mutants(run, count, seed):
        for words in commands:
            told = io.StringIO()
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                code = main(words)
            assert code in (0, 1, 2, 3), (number, words, told.getvalue())
            assert words[0] != "check" or code in (1, 3), (number, told.getvalue())
            assert "Traceback" not in told.getvalue()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"run", "pyproject.toml", "page.html", "compare.html"}
    assert {path.name for path in run.iterdir()} == {"recordings", "run.json"}
