"""The layers: who may import whom, read from the sources without running them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics"}
FILES = {"io", "json", "os", "pathlib", "shutil", "tempfile"}


@dataclass(frozen=True)
class Layer:
    """What a layer of rnndiag may import: other layers, and packages beyond the standard library.

    `lazy` are packages that it may import inside a function only.
    """

    layers: frozenset[str] = frozenset()
    packages: frozenset[str] = frozenset()
    lazy: frozenset[str] = frozenset()


def layer(layers: str = "", packages: str = "", lazy: str = "") -> Layer:
    return Layer(*(frozenset(names.split()) for names in (layers, packages, lazy)))


# The layer of a module is its first name below rnndiag; "" is rnndiag/__init__.py itself.
# An import counts wherever it stands: at the top of a file, inside a function, or for types only.
READING = "errors store stats health report"
LAYERS = {
    "": layer(),
    "errors": layer(),
    "engine": layer("errors", "torch numpy scipy"),
    "store": layer("errors", "numpy", lazy="fsspec"),
    "stats": layer("errors store", "numpy scipy"),
    "health": layer("errors store stats", "numpy scipy tomli"),
    "report": layer("errors store stats health", "numpy scipy jinja2 markupsafe"),
    "plot": layer(READING, "numpy", lazy="matplotlib"),
    "run": layer(READING, "numpy", lazy="pandas xarray"),
    "recorder": layer(
        # typing_extensions comes with every torch
        f"engine {READING} plot",
        "torch numpy scipy typing_extensions",
        lazy="lightning pytorch_lightning jsonargparse wandb",
    ),
    "train": layer(
        "errors engine recorder", "torch numpy scipy", lazy="lightning pytorch_lightning"
    ),
    "cli": layer(f"{READING} plot run", "numpy", lazy="shtab"),
    "pytest_plugin": layer(f"engine {READING} run recorder cli", "pytest"),
    "__main__": layer("cli"),
}

# These run without torch on a laptop or in a CI container, so they never import it, not even late.
NUMPY_WING = ("store", "stats", "health", "report", "plot", "run", "cli")


@dataclass(frozen=True)
class Import:
    """One name that a module imports, and when: at its own import ("now"), later, or for types."""

    module: str
    name: str | None
    when: str
    line: int


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def sources(package: str = "rnndiag") -> dict[str, Path]:
    return {module_name(path): path for path in sorted((ROOT / package).rglob("*.py"))}


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[Import]:
    """Every import of a module, `import_module("...")` of a constant among them."""

    def walk(node: ast.AST, when: str) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, when, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, *([node.module] if node.module else [])])
            yield from (Import(base, alias.name, when, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            name = called.id if isinstance(called, ast.Name) else called
            if name in {"import_module", "__import__", "find_spec"}:
                yield Import(str(node.args[0].value), None, when, node.lineno)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                yield from walk(child, "types")
            for child in node.orelse:
                yield from walk(child, when)
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            when = "later" if when == "now" else when
        for child in ast.iter_child_nodes(node):
            yield from walk(child, when)

    yield from walk(tree, "now")


@cache
def all_imports(package: str = "rnndiag") -> dict[str, list[Import]]:
    return {
        module: list(imports(ast.parse(path.read_text()), module, path.name == "__init__.py"))
        for module, path in sources(package).items()
    }


def target(imported: Import, modules: set[str]) -> str:
    """The module that an import reaches: `from package import module` reaches the module."""
    full = f"{imported.module}.{imported.name}"
    return full if full in modules else imported.module


def is_private(imported: Import) -> bool:
    parts = f"{imported.module}.{imported.name or ''}".split(".")
    return any(part.startswith("_") for part in parts)


def faults(module: str, imported: Import, modules: set[str]) -> Iterator[str]:
    """What is wrong with one import, in words."""
    here = layer_of(module)
    rules = LAYERS[here]
    where = f"{module}:{imported.line} imports {imported.module}"
    top = imported.module.split(".")[0]
    if (imported.module, imported.name) == ("rnndiag", "__version__"):
        return
    if here in NUMPY_WING and top in TORCH:
        yield f"{where}: {here} must work where there is no torch"
    elif top == "rnndiag":
        to = target(imported, modules)
        there = layer_of(to)
        private = is_private(imported)
        if there not in {here, *rules.layers} and here != "":
            yield f"{where}: {here or 'rnndiag'} may import {sorted(rules.layers)}, not {there}"
        elif there != here and private:
            yield f"{where}: {imported.name} is private to {there}"
        if here == "" and imported.when == "now":
            yield f"{where}: import rnndiag must load nothing else"
    elif here == "engine" and top in FILES:
        yield f"{where}: engine is mathematics on tensors and touches no files"
    elif top not in {*sys.stdlib_module_names, "tomllib"}:  # of the library from 3.11 on
        late = imported.when in {"later", "types"} and top in rules.lazy
        if top not in rules.packages and not late:
            yield f"{where}: {here or 'rnndiag'} may import {sorted(rules.packages)}"


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer_of(module) for module in sources()} <= set(LAYERS)


@pytest.mark.parametrize("here", LAYERS)
def test_imports_point_one_way(here: str) -> None:
    found = all_imports()
    modules = set(found)
    wrong = [
        fault
        for module, lines in found.items()
        if layer_of(module) == here
        for imported in lines
        for fault in faults(module, imported, modules)
    ]
    assert not wrong, "\n".join(wrong)


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """One cycle of a graph, as the path that closes it, or []."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for following in sorted(edges.get(node, ())):
            closed = visit(following, [*path, node])
            if closed:
                return closed
        done.add(node)
        return []

    return next((closed for node in edges if (closed := visit(node, []))), [])


def test_there_are_no_import_cycles() -> None:
    found = all_imports()
    modules = set(found)
    edges = {
        module: {target(line, modules) for line in lines} & modules - {module, "rnndiag"}
        for module, lines in found.items()
        if module != "rnndiag"  # the table of public names, each loaded at its first use
    }
    assert not (closed := cycle(edges)), " -> ".join(closed)


def test_a_cycle_would_be_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("rnndiag.store.reader", "def f():\n    import torch", "no torch"),
        ("rnndiag.cli.show", "from lightning.pytorch import Trainer", "no torch"),
        ("rnndiag.report.page", "import importlib\nimportlib.import_module('torch')", "no torch"),
        ("rnndiag.store.reader", "from rnndiag import health", "may import"),
        ("rnndiag.engine.scan", "from rnndiag.recorder.probe import probe", "may import"),
        ("rnndiag.engine.scan", "def f():\n    from ..recorder import probe", "may import"),
        ("rnndiag.engine.scan", "import lightning", "may import"),
        ("rnndiag.engine.scan", "from pathlib import Path", "no files"),
        ("rnndiag.health.gate", "def f():\n    from rnndiag.recorder import probe", "may import"),
        ("rnndiag.store.reader", "from rnndiag.stats.reach import reach", "may import"),
        ("rnndiag.health.rules", "from rnndiag.store.reader import _read", "private"),
        ("rnndiag.run.frames", "import pandas", "may import"),
        ("rnndiag", "from rnndiag.errors import RnndiagError", "nothing else"),
    ],
)
def test_a_wrong_import_would_be_found(module: str, source: str, word: str) -> None:
    modules = {module, "rnndiag.health", "rnndiag.recorder", "rnndiag.recorder.probe"}
    found = [
        fault
        for imported in imports(ast.parse(source), module, module == "rnndiag")
        for fault in faults(module, imported, modules)
    ]
    assert any(word in fault for fault in found), found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rnndiag.recorder.callback", "from rnndiag.health import check"),
        ("rnndiag.run.frames", "def f():\n    import pandas"),
        ("rnndiag.store.writer", "from rnndiag import __version__"),
        ("rnndiag.cli.show", "from rnndiag.run.run import open_run\nimport json"),
    ],
)
def test_a_right_import_is_let_through(module: str, source: str) -> None:
    for imported in imports(ast.parse(source), module, is_package=False):
        assert list(faults(module, imported, {module})) == []


@pytest.mark.parametrize("package", ["lightning_modules", "examples", "benchmarks", "reports"])
def test_what_stands_outside_uses_public_names(package: str) -> None:
    private = [
        f"{module}:{line.line} imports {line.name} from {line.module}"
        for module, lines in all_imports(package).items()
        for line in lines
        if line.module.split(".")[0] == "rnndiag"
        and is_private(line)
        and line.name != "__version__"
    ]
    assert not private, "\n".join(private)
