"""Names of files say what is inside."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def test_names_say_what_is_inside() -> None:
    folders = ("rnndiag", "lightning_modules", "tests", "benchmarks", "examples")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in paths if SAY_NOTHING & set(path.stem.split("_"))]


def test_test_files_have_names_of_their_own() -> None:
    """The test folders are no packages, so two files of one name would shadow each other."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
