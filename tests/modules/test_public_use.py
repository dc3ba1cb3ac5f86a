"""The programs are users of rnndiag: they import its top level and its errors, and nothing behind them."""

import ast

import pytest

import rnndiag
from lightning_modules.programs import HERE

FILES = sorted(HERE.rglob("*.py"))


def imported(tree):
    """(module, name) of every import of rnndiag."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (alias.name, "") for alias in node.names if alias.name.startswith("rnndiag")
            )
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rnndiag"):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(HERE).as_posix())
def test_only_public_names_are_used(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for module, name in imported(tree):
        assert module in ("rnndiag", "rnndiag.errors"), module
        assert not name or module == "rnndiag.errors" or name in rnndiag.__all__
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "rnndiag" or node.attr in rnndiag.__all__, node.attr
