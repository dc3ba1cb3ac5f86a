"""Every Python block of the README and the docs runs, page by page, in a directory of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in BLOCK.findall(page.read_text()) if name == language]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: str(p.relative_to(ROOT))
)
@pytest.mark.filterwarnings("ignore::rnndiag.recorder.faults.RnndiagWarning")
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`:UserWarning")
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from rnndiag.engine.cells import CELLS

    monkeypatch.setattr("rnndiag.engine.cells.registry.CELLS", dict(CELLS))  # what a page registers
    code = blocks(page, "python")
    space: dict[str, object] = {"__name__": "docs"}
    for body in code:
        exec(compile(body, str(page), "exec"), space)
    assert len(code) > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_other_blocks_and_links_lead_somewhere(page: Path) -> None:
    for body in blocks(page, "toml"):
        assert tomllib.loads(body)
    from rnndiag.cli import COMMANDS

    for body in blocks(page, "console"):
        for line in body.splitlines():
            if line.startswith("$ rnndiag "):
                assert line.split()[2] in {*COMMANDS, "COMMAND"}, line
            elif line.startswith("$ make "):
                targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                assert line.split()[2] in targets, line
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_configuration_in_the_docs_is_understood(tmp_path: Path) -> None:
    from rnndiag.health import read_config

    (body,) = blocks(ROOT / "docs/reference/commands.md", "toml")
    file = tmp_path / "pyproject.toml"
    file.write_text(body)
    assert read_config(file).min_recordings == 5
