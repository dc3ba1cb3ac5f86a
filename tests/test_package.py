"""The package as others meet it: a light import, public names that are there, a lean wheel."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import rnndiag

ROOT = Path(__file__).parent.parent
TABLES = {**rnndiag._PUBLIC, **rnndiag._PUBLIC_MODULES}


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(code: str) -> set[str]:
    return set(python(f"{code}\nimport sys\nprint(*sys.modules)").split())


def test_import_loads_this_one_module_and_no_package_of_others() -> None:
    bare = loaded_after("import importlib, typing, __future__")
    assert loaded_after("import rnndiag") - bare == {"rnndiag"}


def test_numpy_wing_works_where_torch_cannot_be_imported() -> None:
    """A None in sys.modules makes Python refuse the import."""
    wing = [
        f"rnndiag.{name}"
        for name in ("run", "health", "report", "cli")
        if (ROOT / "rnndiag" / name).exists()
    ]
    said = python(
        "import sys\n"
        "sys.modules.update(torch=None, lightning=None, pytorch_lightning=None, matplotlib=None)\n"
        f"import rnndiag, {', '.join([*wing, 'rnndiag.errors'])}\n"
        f"print(*(name for name in {wing} if sys.modules[name] is not None), sys.modules['torch'])"
    )
    assert said.split() == [*wing, "None"]


@pytest.mark.parametrize("name", TABLES)
def test_public_name_is_there(name: str) -> None:
    assert name in dir(rnndiag)
    assert getattr(rnndiag, name) is not None


def test_unknown_name_is_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="no attribute 'gradients'"):
        rnndiag.gradients


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "rnndiag" / "__init__.py").read_text())
    seen = {
        alias.name: f"{line.module}"
        if alias.name in rnndiag._PUBLIC
        else f"{line.module}.{alias.name}"
        for block in tree.body
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert seen == TABLES


def test_version_is_the_newest_of_the_changelog() -> None:
    heads = [
        line.split()[1].strip("[]")
        for line in (ROOT / "CHANGELOG.md").read_text().splitlines()
        if line.startswith("## ")
    ]
    assert rnndiag.__version__ in heads[:2]  # the first may be "Unreleased"


def test_wheel_holds_rnndiag_alone(tmp_path: Path) -> None:
    """All of rnndiag's files, and nothing of the folders beside it."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rnndiag").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == files
    assert "rnndiag/py.typed" in inside


def pyproject() -> dict[str, Any]:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    return importlib.import_module(name).loads((ROOT / "pyproject.toml").read_text())


def test_entry_points_lead_somewhere() -> None:
    project = pyproject()["project"]
    groups = [project["scripts"], *project.get("entry-points", {}).values()]
    for entry in [target for group in groups for target in group.values()]:
        module, _, attribute = entry.partition(":")
        found = importlib.import_module(module)
        assert not attribute or callable(getattr(found, attribute))


def test_oldest_versions_are_the_ones_that_are_tested() -> None:
    """Every lower bound that a user's install has stands in constraints-lowest.txt."""
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    promised = [*project["dependencies"]]
    for extra in ("figures", "train", "frames", "remote"):
        promised += extras[extra]
    bounds = {line for line in promised if ">=" in line and ";" not in line}
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for bound in bounds:
        name, least = bound.split(">=")
        assert [*pins[name].split("."), "0", "0"][:3] == [*least.split("."), "0", "0"][:3]
