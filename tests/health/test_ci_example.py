"""The ready CI example: workflow, committed baseline and snapshot hold; a refactoring that breaks the memory fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rnndiag.cli import main

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "ci" / "example"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the example, as the working directory."""
    shutil.copytree(EXAMPLE, tmp_path / "example")
    monkeypatch.chdir(tmp_path / "example")
    return tmp_path / "example"


def train(folder: Path, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "train.py", f"runs/{seed}", "--seed", str(seed)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_another_seed_passes_the_committed_baseline(
    example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(example, 11)
    assert main(["check", "runs/11"]) == 0, capsys.readouterr().out
    assert "reach vs base" in capsys.readouterr().out


@pytest.mark.slow
def test_a_refactoring_that_shuts_the_forget_gate_fails(
    example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (example / "train.py").read_text()
    changed = source.replace("2 * hidden] = 1.0", "2 * hidden] = -5.0")
    assert changed != source
    (example / "train.py").write_text(changed)
    train(example, 0)
    assert main(["check", "runs/0"]) == 1
    told = capsys.readouterr().out
    assert "FAIL  forget_gate" in told
    assert "FAIL  reach" in told
    assert re.search(r"outside noise \(shift over \d+(\.\d+)? % fails\)", told)


def test_the_committed_snapshot_holds(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--snapshot", "snapshot"]) == 0, capsys.readouterr()


def test_the_workflow_calls_commands_that_exist() -> None:
    text = (ROOT / "docs" / "ci" / "rnndiag.yml").read_text()
    commands = re.findall(r"run: rnndiag (\w+) (.*)", text)
    assert {name for name, _ in commands} == {"check", "report"}
    for name, options in commands:
        for option in re.findall(r"--[a-z-]+", options):
            with pytest.raises(SystemExit) as stop:
                parse(name, option)
            assert stop.value.code == 0
    assert "\t" not in text


def parse(command: str, option: str) -> None:
    """Ends with 0 where the command's help knows the option."""
    import argparse
    from importlib import import_module

    from rnndiag.cli import COMMANDS

    parser = argparse.ArgumentParser(command)
    import_module(COMMANDS[command][0]).configure(parser)
    raise SystemExit(0 if option in parser.format_help() else 1)
