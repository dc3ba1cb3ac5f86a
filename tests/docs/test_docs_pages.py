"""What the site adds to its pages: formulas without scripts, and tables of what the code registers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "scripts/docs_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_names_what_is_registered(pages: ModuleType) -> None:
    from rnndiag import __all__
    from rnndiag.engine.cells import CELLS
    from rnndiag.health import all_rules
    from rnndiag.run.quantities import QUANTITIES

    for name, keys in (
        ("measures", QUANTITIES),
        ("checks", [rule.name for rule in all_rules().values()]),
        ("cells", CELLS),
        ("api", [f"rnndiag.{name}" for name in __all__ if not name.startswith("_")]),
    ):
        table = pages.TABLES[name]()
        missing = [key for key in keys if f"`{key}`" not in table]
        assert not missing, (name, missing)
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, name


def test_every_table_that_a_page_asks_for_exists(pages: ModuleType) -> None:
    asked = [
        name
        for page in (ROOT / "docs").rglob("*.md")
        for name in pages.TABLE.findall(page.read_text())
    ]
    assert sorted(asked) == sorted(pages.TABLES)


def test_formulas_become_mathml_and_code_stays(pages: ModuleType) -> None:
    pytest.importorskip("latex2mathml")
    text = pages.formulas("so $a^2$ and `$x$` cost $5\n```python\ns = '$a$'\n```\n$$b$$")
    assert text.count("<math") == 2
    assert "so <span><math" in text
    assert "`$x$`" in text
    assert "s = '$a$'" in text
    assert "cost $5" in text
