"""The reference of the public names, written from the code when the site is built: signatures, docstrings, members.

Every name of `rnndiag.__all__` gets an entry, under the topic that its module belongs to; classes with their public
fields, properties and methods, modules with what they hold. What has no docstring stops the build.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cached_property
from types import FunctionType, ModuleType
from typing import Any

TOPICS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Recording", "Where training happens: needs torch.", ("rnndiag.recorder",)),
    (
        "One layer run",
        "Exact mathematics on what one recurrent layer did: tensors in, tensors out.",
        ("rnndiag.engine.layer_run", "rnndiag.engine.adjoints", "rnndiag.engine.contributions"),
    ),
    ("Proofs and cells", "", ("rnndiag.engine.proof", "rnndiag.engine.cells")),
    ("Truncation", "Lags, windows and estimators.", ("rnndiag.engine.truncation",)),
    ("Training", "Loops with a truncated or randomized gradient.", ("rnndiag.train",)),
    ("Jacobians and spectra", "", ("rnndiag.engine.spectra",)),
    ("Kernels", "For authors of recurrent kernels.", ("rnndiag.engine.gradcheck",)),
    (
        "Runs",
        "Reading and writing run directories: needs numpy alone.",
        ("rnndiag.run", "rnndiag.stats", "rnndiag.store"),
    ),
    ("Verdicts and reports", "", ("rnndiag.health", "rnndiag.report", "rnndiag.plot")),
    ("Errors", "Each says what happened, and what to do.", ("rnndiag.errors",)),
)
"""Title, a sentence, and the modules whose public names belong there."""

SPECIAL = str.maketrans({c: f"&#{ord(c)};" for c in "\\*_[]<>$~|{}"})


class Undocumented(Exception):
    """A public name without a docstring."""


def plain(text: str) -> str:
    """Text in which only `code` is marked up."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        p if k % 2 else p.replace("&", "&amp;").translate(SPECIAL) for k, p in enumerate(parts)
    )


def signature(name: str, value: Any) -> str:
    """The call as Python would write it, an argument a line where it is long."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    arguments = [_argument(p) for p in found.parameters.values() if p.name != "self"]
    kinds = [p.kind for p in found.parameters.values() if p.name != "self"]
    first = next(
        (k for k, kind in enumerate(kinds) if kind is inspect.Parameter.KEYWORD_ONLY), None
    )
    if first is not None and inspect.Parameter.VAR_POSITIONAL not in kinds:
        arguments.insert(first, "*")
    result = found.return_annotation
    arrow = "" if result is inspect.Signature.empty or isinstance(value, type) else f" -> {result}"
    arrow = arrow.replace("'", "")
    line = f"{name}({', '.join(arguments)}){arrow}"
    if len(line) <= 96:
        return line
    return f"{name}(\n" + "".join(f"    {one},\n" for one in arguments) + f"){arrow}"


def _argument(parameter: inspect.Parameter) -> str:
    star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{star}{parameter.name}"
    if parameter.annotation is not parameter.empty:
        note = parameter.annotation
        text += f": {note if isinstance(note, str) else inspect.formatannotation(note)}"
    if parameter.default is not parameter.empty:
        shown = repr(parameter.default)
        text += " = ..." if shown.startswith("<") else f" = {shown}"
    return text


def prose(text: str, names: set[str]) -> str:
    """A docstring as Markdown: its paragraphs, and the words on each argument as a list."""
    lines: list[str] = []
    item: int | None = None
    in_example = False
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if in_example or line.lstrip().startswith(">>> "):
            lines += [] if in_example else ["", "```python"]
            lines.append(line.strip() or "```")
            in_example = bool(line.strip())
            continue
        if section := re.fullmatch(r"(Returns|Raises|Yields|Example|Attributes):", line.strip()):
            lines += ["", f"*{section[1]}*", ""]
            item = None
            continue
        found = re.match(r"\s*(\w+(?:, \w+)*): (.*)", line)
        if line.strip() in ("Args:", "Arguments:"):
            continue
        if found and all(word in names for word in found[1].split(", ")):
            if item is None:
                lines.append("")
            lines.append(f"- `{found[1]}`: {plain(found[2])}")
            item = indent
        elif item is not None and indent > item:
            lines[-1] += f" {plain(line.strip())}"
        else:
            if item is not None:
                lines.append("")
            lines.append(plain(line.strip()))
            item = None
    return "\n".join([*lines, "```"] if in_example else lines)


def about(name: str, value: Any, names: set[str]) -> str:
    """What a name says of itself."""
    text = inspect.getdoc(value)
    of_dataclass = isinstance(value, type) and re.fullmatch(rf"{value.__name__}\(.*\)", text or "")
    if not text or of_dataclass:
        raise Undocumented(f"{name} is public and has no docstring.")
    return prose(text, names)


class Source:
    """What the source of a class says of its fields."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    @cached_property
    def fields(self) -> dict[str, tuple[str, str]]:
        """Public field -> (its type, its words), in the order of the source, those of base classes first."""
        found: dict[str, tuple[str, str]] = {}
        for base in reversed(self.kind.__mro__):
            if base.__module__.startswith("rnndiag"):
                found.update(self._of(base))
        return found

    @staticmethod
    def _of(kind: type) -> dict[str, tuple[str, str]]:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        assert isinstance(tree, ast.ClassDef)
        found = {}
        for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                words = ""
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    words = str(after.value.value)
                if not node.target.id.startswith("_"):
                    found[node.target.id] = (ast.unparse(node.annotation), words)
        return found


def members(kind: type) -> Iterator[str]:
    """Fields, properties and methods that people use, one list item each."""
    for name, (annotation, words) in Source(kind).fields.items():
        yield f"- `{name}: {annotation}`{' – ' + plain(' '.join(words.split())) if words else ''}"
    seen: set[str] = set()
    foreign = [
        b for b in kind.__mro__ if not b.__module__.startswith("rnndiag") and b is not object
    ]
    for base in kind.__mro__:
        if not base.__module__.startswith("rnndiag"):
            continue
        for name, value in vars(base).items():
            inherited = any(hasattr(other, name) for other in foreign)
            if name.startswith(("_", "on_")) or name in seen or inherited:
                continue
            seen.add(name)
            text = inspect.getdoc(getattr(kind, name)) if callable(value) else inspect.getdoc(value)
            if isinstance(value, property | cached_property):
                yield f"- `{name}` – {plain(' '.join((text or '').split()))}"
            elif isinstance(value, FunctionType | classmethod | staticmethod) and text:
                call = " ".join(signature(f".{name}", getattr(kind, name)).split())
                yield f"- `{call}` – {plain(' '.join(text.split()))}"


def entry(name: str, value: Any, level: str = "###") -> str:
    """One public name: heading, signature, words, members."""
    if isinstance(value, ModuleType):
        return module(name, value)
    names = set(_parameters(value))
    fence = f"```python\n{signature(name, value)}\n```"
    parts = [heading(level, name), fence, about(name, value, names)]
    if isinstance(value, type) and not issubclass(value, BaseException):
        parts += ["\n".join(members(value))]
    return "\n\n".join(part for part in parts if part)


def heading(level: str, name: str) -> str:
    """A heading whose address is the whole name."""
    return f"{level} {plain(name.rpartition('.')[2])} {{ #{name} }}"


def _parameters(value: Any) -> list[str]:
    try:
        return list(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return []


def module(name: str, value: ModuleType) -> str:
    """A public module: its words and an entry for each thing that it defines or offers."""
    listed = getattr(value, "__all__", None) or [
        key
        for key, one in vars(value).items()
        if not key.startswith("_") and getattr(one, "__module__", "") == value.__name__
    ]
    things = [(f"{name}.{key}", getattr(value, key)) for key in listed]
    entries = [entry(key, one, "####") for key, one in things if callable(one)]
    return "\n\n".join([heading("###", name), about(name, value, set()), *entries])


def reference() -> str:
    """All public names, by topic."""
    import rnndiag

    public = {n: getattr(rnndiag, n) for n in rnndiag.__all__ if not n.startswith("__")}
    homes = {n: {**rnndiag._PUBLIC, **rnndiag._PUBLIC_MODULES}[n] for n in public}
    parts, placed = [], set()
    for title, sentence, modules in TOPICS:
        here = [n for n, where in homes.items() if where.startswith(modules) and n not in placed]
        placed.update(here)
        parts += [f"## {title}", *([sentence] if sentence else [])]
        parts += [entry(f"rnndiag.{n}", public[n]) for n in sorted(here, key=str.lower)]
    missing = set(public) - placed
    if missing:
        raise Undocumented(f"{', '.join(sorted(missing))} belong to no topic of the reference.")
    return "\n\n".join(parts)


def commands() -> str:
    """The help of every command, as the console prints it."""
    import argparse
    from importlib import import_module

    from rnndiag.cli import COMMANDS

    parts = []
    for name, (where, words) in COMMANDS.items():
        parser = argparse.ArgumentParser(
            prog=f"rnndiag {name}",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=96),
        )
        import_module(where).configure(parser)
        parts += [f"### rnndiag {name}", f"{plain(words)}.", f"```text\n{parser.format_help()}```"]
    return "\n\n".join(parts)
