"""The notebooks of the docs run, print what is stored in them, and are shown on pages of the site."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    sys.modules.pop("notebooks", None)
    import notebooks

    return notebooks


def test_there_is_one_for_a_researcher_and_one_for_an_engineer() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["engineer", "researcher"]


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
@pytest.mark.filterwarnings("ignore::rnndiag.recorder.faults.RnndiagWarning")
def test_a_notebook_prints_and_draws_what_is_stored_in_it(
    file: Path, notebooks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cells: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["cells"]
    stored = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    for outputs, (printed, pictures) in zip(
        stored, notebooks.run_cells(cells, file.name), strict=True
    ):
        text = "".join(notebooks.text_of(one["text"]) for one in outputs if "text" in one)
        assert printed == text
        assert len(pictures) == sum("data" in one for one in outputs)
    assert any(outputs for outputs in stored)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_page_of_the_docs_shows_the_notebook(file: Path, notebooks: ModuleType) -> None:
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert f"{{{{ notebook {file.stem} }}}}" in page
    assert f"notebooks/{file.stem}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    shown = notebooks.markdown(file)
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    assert all(notebooks.text_of(cell["source"]).rstrip() in shown for cell in cells)
    assert "data:image/png;base64," in shown
