"""Every block of the README and the docs is held against the code: Python runs, commands and tables are understood."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LANGUAGES = {"python", "console", "toml", "text", "", "yaml", "bash", "sh", "ini"}
"""A block of any other language would be looked at by no test. Those without a language are listings, not code."""
FOR_PYTEST = "def test_"
"""A block that begins with this is a test of a user's project: it is run by pytest, below."""


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in BLOCK.findall(page.read_text()) if name == language]


def runnable(page: Path) -> list[tuple[str, str | None]]:
    """Every Python block, with the text block that stands right under it: what it prints."""
    text, found = page.read_text(), []
    for match in BLOCK.finditer(text):
        if match[1] == "python" and not match[2].startswith(FOR_PYTEST):
            after = BLOCK.match(text[match.end() :].lstrip("\n"))
            found.append((match[2], after[2] if after and after[1] == "text" else None))
    return found


WITH_PYTHON = [p for p in PAGES if runnable(p)]


TRAINS = {ROOT / "docs/tutorial.md"}
"""Pages whose code trains a net twice, which takes some 20 seconds."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] if p in TRAINS else []) for p in WITH_PYTHON],
    ids=lambda p: str(p.relative_to(ROOT)),
)
@pytest.mark.filterwarnings("ignore::rnndiag.recorder.faults.RnndiagWarning")
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`:UserWarning")
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from rnndiag.engine.cells import CELLS

    monkeypatch.setattr("rnndiag.engine.cells.registry.CELLS", dict(CELLS))  # what a page registers
    space: dict[str, object] = {"__name__": "docs"}
    for body, printed in runnable(page):
        screen = io.StringIO()
        with contextlib.redirect_stdout(screen):
            exec(compile(body, str(page), "exec"), space)
        if printed is not None:
            assert screen.getvalue() == printed


def test_readme_shows_the_end_screen_of_the_tutorial() -> None:
    def screen(page: str) -> str:
        (found,) = [b for b in blocks(ROOT / page, "text") if b.startswith("rnndiag: ")]
        return found

    assert screen("README.md") == screen("docs/tutorial.md")


def test_no_block_escapes_these_tests() -> None:
    """Every fence is one that the pattern above sees, of a language that is looked at; the main pages have code."""
    names = {str(page.relative_to(ROOT)) for page in WITH_PYTHON}
    assert {"README.md", "docs/index.md", "docs/concepts/worked.md"} <= names
    for page in PAGES:
        text = page.read_text()
        assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(
            BLOCK.findall(text)
        ), f"{page.name} has a fence that is indented or left open"
        assert {language for language, _ in BLOCK.findall(text)} <= LANGUAGES, page.name


PROJECT = f"""
import sys
sys.path.insert(0, {str(ROOT / "docs/ci/example")!r})
import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, TensorDataset
from train import DELAY, T, DelayNet

def make_trainer(callbacks):
    return L.Trainer(max_steps=500, callbacks=callbacks, logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)

def make_model():
    return DelayNet()

def delay_loader():
    torch.manual_seed(0)
    x = torch.randn(512, T, 1)
    return DataLoader(TensorDataset(x, x.roll(DELAY, 1)), 32)

make_data = delay_loader
"""
"""What the tests that the docs show take from their project: here that of the CI example."""


@pytest.mark.slow
def test_tests_that_the_docs_show_pass_in_a_project(tmp_path: Path) -> None:
    """The blocks for pytest, run by pytest with the plugin."""
    found = [b for p in PAGES for b in blocks(p, "python") if b.startswith(FOR_PYTEST)]
    assert len(found) >= 2
    (tmp_path / "project.py").write_text(PROJECT)
    for number, body in enumerate(found):
        (tmp_path / f"test_docs_{number}.py").write_text(f"from project import *\n\n\n{body}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "rnndiag.pytest_plugin"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert f"{''.join(found).count('def test_')} passed" in done.stdout


def options_of(command: str) -> set[str]:
    """The options that a command of the console knows."""
    from rnndiag.cli import COMMANDS

    parser = argparse.ArgumentParser()
    import_module(COMMANDS[command][0]).configure(parser)
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_other_blocks_and_links_lead_somewhere(page: Path) -> None:
    for body in blocks(page, "toml"):
        assert tomllib.loads(body)
    from rnndiag.cli import COMMANDS

    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for body in [*blocks(page, "console"), *blocks(page, "bash"), *blocks(page, "sh")]:
        for line in body.splitlines():
            words = line.removeprefix("$ ").split("#")[0].split()
            if words[:1] == ["rnndiag"]:
                assert words[1] in {*COMMANDS, "COMMAND"}, line
                asked = set(re.findall(r"--[a-z-]+", " ".join(words)))
                assert words[1] == "COMMAND" or asked <= options_of(words[1]), line
            elif words[:1] == ["make"]:
                assert words[1] in targets, line
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).is_file(), f"{page.name} links to {target}"


def test_configuration_in_the_docs_is_understood(tmp_path: Path) -> None:
    from rnndiag.health import read_config

    (body,) = blocks(ROOT / "docs/reference/commands.md", "toml")
    file = tmp_path / "pyproject.toml"
    file.write_text(body)
    assert read_config(file).min_recordings == 5
