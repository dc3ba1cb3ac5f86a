"""The list of all registered quantities, as text for a terminal and as a Markdown table for the docs."""

from __future__ import annotations

from rnndiag.store.quantities import QUANTITIES


def registry_text() -> str:
    """All registered quantities as text."""
    lines = []
    group = ""
    for q in QUANTITIES.values():
        if q.group != group:
            group = q.group
            lines.append(f"\n{group}")
        dims = " x ".join(q.dims) or "one number"
        lines.append(f"  {q.name:26s} {dims}; {q.unit}, {q.scale}\n      {q.meaning}")
    return "\n".join(lines).lstrip("\n") + "\n"


def registry_markdown() -> str:
    """All registered quantities as a Markdown table."""
    rows = ["| quantity | dims | unit | scale | of | meaning |", "|---|---|---|---|---|---|"]
    for q in QUANTITIES.values():
        meaning = q.meaning.replace("|", "\\|")
        rows.append(
            f"| `{q.name}` | {', '.join(q.dims) or '–'} | {q.unit} | {q.scale} | {q.owner} | {meaning} |"
        )
    return "\n".join(rows) + "\n"
