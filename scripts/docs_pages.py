"""What the documentation site adds to its Markdown: formulas as MathML, and tables made from the registries.

A formula stands between dollar signs and is turned into MathML when the site is built, so that no page needs a script
or the network. A line `{{ table NAME }}` becomes a table of what the code registers under that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

FENCE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
BLOCK = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\w)")
TABLE = re.compile(r"^\{\{ table (\w+) \}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return formulas(TABLE.sub(lambda found: TABLES[found.group(1)](), markdown))


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
    from rnndiag.run.quantities import QUANTITIES

    return rows(
        ("quantity", "dims", "unit", "scale", "meaning"),
        (
            (f"`{q.name}`", " × ".join(q.dims) or "one number", q.unit, q.scale, q.meaning)
            for q in QUANTITIES.values()
        ),
    )


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
                "yes" if rule.defaults.bounded else "no",
            )
            for rule in sorted(all_rules().values(), key=lambda rule: rule.name)
        ),
    )


def api() -> str:
    """Every public name with the first line of what it says of itself."""
    import inspect

    import rnndiag

    body = []
    for name in rnndiag.__all__:
        value = getattr(rnndiag, name)
        about = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
        if not name.startswith("__"):
            body.append((f"`rnndiag.{name}`", about))
    return rows(("name", "what it is"), sorted(body, key=lambda row: row[0].lower()))


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


TABLES: dict[str, Callable[[], str]] = {
    "measures": measures,
    "checks": checks,
    "api": api,
    "cells": cells,
}
