"""What the documentation site adds to its Markdown: formulas as MathML, and tables made from the registries.

A formula stands between dollar signs and is turned into MathML when the site is built, so that no page needs a script
or the network. A line `{{ table NAME }}` becomes a table of what the code registers under that name, and a line
`{{ notebook NAME }}` becomes the cells of that notebook with the outputs stored in it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # what mkdocs loads as a hook stands alone

import docs_api
import notebooks

FENCE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
BLOCK = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\w)")
NOTEBOOK = re.compile(r"^\{\{ notebook (\w+) \}\}$", re.MULTILINE)
TABLE = re.compile(r"^\{\{ table (\w+) \}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    text = NOTEBOOK.sub(
        lambda found: notebooks.markdown(notebooks.FOLDER / f"{found.group(1)}.ipynb"), markdown
    )
    return formulas(TABLE.sub(lambda found: TABLES[found.group(1)](), text))


def formulas(text: str) -> str:
    """Formulas outside of code as MathML."""
    from latex2mathml.converter import convert

    def outside(part: str) -> str:
        part = BLOCK.sub(lambda m: f"\n\n{convert(m.group(1).strip(), display='block')}\n\n", part)
        # at the start of a line Markdown takes <math> for a block of its own, <span> for a word
        return INLINE.sub(lambda m: f"<span>{convert(m.group(1))}</span>", part)

    pieces = FENCE.split(text)
    return "".join(piece if k % 2 else outside(piece) for k, piece in enumerate(pieces))


def rows(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, body)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def measures() -> str:
    """Every stored quantity."""
    from rnndiag.store.quantities import QUANTITIES

    return rows(
        ("quantity", "dims", "unit", "scale", "meaning"),
        (
            (f"`{q.name}`", " × ".join(q.dims) or "one number", q.unit, q.scale, q.meaning)
            for q in QUANTITIES.values()
        ),
    )


def _bounds(low: float | None, high: float | None) -> str:
    sides = {"below": low, "above": high}
    return " or ".join(f"{k} {v:g}" for k, v in sides.items() if v is not None) or "never"


def checks() -> str:
    """Every rule of the gate."""
    from rnndiag.health import all_rules

    return rows(
        ("check", "the number", "too low: what to do", "too high: what to do", "fails by itself"),
        (
            (
                f"`{rule.name}`",
                rule.meaning,
                rule.too_low or "–",
                rule.too_high or "–",
                _bounds(rule.defaults.min, rule.defaults.max),
            )
            for rule in sorted(all_rules().values(), key=lambda rule: rule.name)
        ),
    )


def api() -> str:
    """Every public name with the first line of what it says of itself, and a link to all of it."""
    import inspect

    import rnndiag

    body = []
    for name in rnndiag.__all__:
        about = (inspect.getdoc(getattr(rnndiag, name)) or "").split("\n\n")[0]
        if not name.startswith("__"):
            body.append((f"[`rnndiag.{name}`](#rnndiag.{name})", docs_api.plain(about)))
    lines = [(link, about.replace("\n", " ")) for link, about in body]
    return rows(("name", "what it is"), sorted(lines, key=lambda row: row[0].lower()))


def cells() -> str:
    """Every registered cell."""
    from rnndiag.engine.cells import CELLS

    return rows(
        ("cell", "state", "gates", "torch's kernels"),
        (
            (f"`{c.name}`", ", ".join(c.parts), ", ".join(c.gates), ", ".join(c.kernels) or "–")
            for c in CELLS.values()
        ),
    )


def _default(value: object) -> str:
    if value is None or value == ():
        return "–"
    return f"`{value}`"


def config() -> str:
    """Every key of [tool.rnndiag], its default and its meaning."""
    from rnndiag.health.bounds import Bounds
    from rnndiag.health.config import Config

    body = []
    for kind, where in ((Config, "checks."), (Bounds, "checks.NAME.")):
        words = docs_api.Source(kind).fields
        for field in fields(kind):
            if field.name in ("checks", "source", "configured"):  # not keys of the table
                continue
            place = "" if field.name in ("baseline", "comparable_across") else where
            key = f"`{place}{field.name}`"
            meaning = docs_api.plain(" ".join(words[field.name][1].split()))
            if not meaning:
                raise docs_api.Undocumented(f"{kind.__name__}.{field.name} has no docstring.")
            body.append((key, _default(field.default), meaning))
    return rows(("key", "default", "meaning"), body)


def limits() -> str:
    """What a run may hold at most."""
    from rnndiag.store import limits as module

    body = []
    for name, value in vars(module).items():
        if name.isupper() and isinstance(value, int) and name not in ("MIB", "GIB"):
            size = f"{value // module.MIB} MiB" if value >= module.MIB else f"{value:,}"
            body.append((name.lower().replace("_", " "), size))
    return rows(("at most", "is"), body)


def errors() -> str:
    """Every error that a person can meet."""
    import inspect

    import rnndiag

    kinds = [v for v in vars(rnndiag.errors).values() if isinstance(v, type)]
    kinds = [kind for kind in kinds if kind.__module__ == rnndiag.errors.__name__]
    body = [
        (f"`{k.__name__}`", docs_api.plain(" ".join((inspect.getdoc(k) or "").split())))
        for k in kinds
    ]
    return rows(("error", "when"), body)


TABLES: dict[str, Callable[[], str]] = {
    "measures": measures,
    "checks": checks,
    "api": api,
    "cells": cells,
    "config": config,
    "limits": limits,
    "errors": errors,
    "reference": docs_api.reference,
    "commands": docs_api.commands,
}
