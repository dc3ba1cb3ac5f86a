"""One idea a file: small files, small functions, and names that say what is inside."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST_FILE = {"rnndiag": 300, "lightning_modules": 300, "tests": 450, "benchmarks": 450}
LONGEST_FUNCTION = 60
SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


@pytest.mark.parametrize("folder", LONGEST_FILE)
def test_files_are_short(folder: str) -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    long = {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE[folder]}
    assert not long, f"split by idea: {long}"


@pytest.mark.parametrize("folder", ["rnndiag", "lightning_modules"])
def test_functions_are_short(folder: str) -> None:
    long = {
        f"{path.relative_to(ROOT).as_posix()}:{node.lineno} {node.name}": lines
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert not long, long


def test_names_say_what_is_inside() -> None:
    folders = ("rnndiag", "lightning_modules", "tests", "benchmarks", "examples")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in paths if SAY_NOTHING & set(path.stem.split("_"))]


def test_test_files_have_names_of_their_own() -> None:
    """The test folders are no packages, so two files of one name would shadow each other."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
