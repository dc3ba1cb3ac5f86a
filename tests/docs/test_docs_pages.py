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
    from rnndiag.store.quantities import QUANTITIES

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


def test_the_reference_has_every_public_name_with_its_members(pages: ModuleType) -> None:
    import rnndiag

    text = pages.TABLES["reference"]()
    names = [name for name in rnndiag.__all__ if not name.startswith("_")]
    missing = [name for name in names if f"{{ #rnndiag.{name} }}" not in text]
    assert not missing, missing
    for of in ("estimators.Window", "plot.reach", "errors.NotInstalled"):
        assert f"{{ #rnndiag.{of} }}" in text
    for member in ("`.reach(", "`run_dir` –", "- `every_n_steps`: Number", "`.verify("):
        assert member in text, member
    assert text.count("```") % 2 == 0


def test_the_reference_refuses_a_public_name_without_a_word(
    pages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent() -> None: ...

    import rnndiag

    monkeypatch.setattr(rnndiag, "probe", silent)
    with pytest.raises(pages.docs_api.Undocumented, match="probe is public"):
        pages.TABLES["reference"]()
    monkeypatch.undo()
    monkeypatch.setattr(rnndiag, "__all__", [*rnndiag.__all__, "homeless"])
    monkeypatch.setitem(vars(rnndiag), "homeless", silent)
    monkeypatch.setitem(rnndiag._PUBLIC, "homeless", "rnndiag.elsewhere")
    with pytest.raises(pages.docs_api.Undocumented, match="homeless"):
        pages.TABLES["reference"]()


def test_every_key_of_the_configuration_is_listed(pages: ModuleType) -> None:
    from rnndiag.health import config

    text = pages.TABLES["config"]()
    keys = [f"checks.{key}" for key in config._SETTINGS]
    keys += [f"checks.NAME.{key}" for key in config._BOUNDS]
    for key in ["baseline", "comparable_across", *keys]:
        assert f"`{key}`" in text, key


def test_every_command_and_option_is_listed(pages: ModuleType) -> None:
    from rnndiag.cli import COMMANDS

    text = pages.TABLES["commands"]()
    for command in COMMANDS:
        assert f"### rnndiag {command}\n" in text
    for option in ("--baseline", "--junit", "--max-bytes", "--figures"):
        assert option in text


def test_every_figure_of_the_report_is_taught_with_its_picture() -> None:
    import rnndiag.report.figures
    from rnndiag.report.figures.figure import FIGURES

    assert rnndiag.report.figures
    page = (ROOT / "docs/read-a-report.md").read_text()
    sections = dict(
        re.findall(r"^## (F\d+[^\n]*)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    )
    assert len(sections) == len(FIGURES)
    for figure in FIGURES.values():
        body = sections[f"{figure.name} {figure.title}: {figure.question}"]
        assert f"(figures/{figure.name}.png)" in body
        for word in ("- **Axes**: ", "- **Read**: ", "- **Do**: "):
            assert word in body, (figure.name, word)


def test_every_page_is_in_the_site_and_has_a_way_to_it() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in nav, page


def test_the_site_needs_no_network_to_search() -> None:
    """The offline plugin loads its shim from the network unless the site brings one."""
    nav = (ROOT / "mkdocs.yml").read_text()
    assert "- offline" in nav
    (shim,) = re.findall(r"polyfills: \[([^\]]+iframe-worker[^\]]+)\]", nav)
    assert "location.protocol" in (ROOT / "docs" / shim).read_text()


def test_links_to_a_heading_lead_to_one(pages: ModuleType) -> None:
    """Anchors within the docs, as the site makes them of headings (mkdocs --strict checks the built ones)."""

    def anchors(page: Path) -> set[str]:
        text = pages.TABLE.sub(lambda found: pages.TABLES[found.group(1)](), page.read_text())
        heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        plain = {re.sub(r"[^\w\s-]", "", re.sub(r"\$.*?\$", "", h)).strip().lower() for h in heads}
        return {re.sub(r"[\s]+", "-", h) for h in plain} | set(re.findall(r"\{ #(\S+) \}", text))

    for page in (ROOT / "docs").rglob("*.md"):
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", page.read_text()):
            goal = (page.parent / target).resolve() if target else page
            assert anchor in anchors(goal), f"{page.name} links to {target}#{anchor}"


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
