"""A `MemoryNeed` as plain values for JSON, and as lines of text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rnndiag.stats.need.memory_need import MemoryNeed
from rnndiag.stats.need.sentences import number


def need_as_json(need: MemoryNeed) -> dict[str, Any]:
    """All numbers, the verdict and its sentences; non-finite numbers become None."""
    plain = {field.name: _plain(getattr(need, field.name)) for field in fields(need)}
    sentences = [need.sentence, *need.further_sentences]
    return {"lead": need.lead, "sentences": sentences, "scale": _plain(need.scale), **plain}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _plain(part) for key, part in value._asdict().items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def need_text(need: Mapping[str, Any]) -> str:
    """The sentences, NEED by lag and USE by inputs as text, from the result of `need_as_json`."""
    lines = [
        *need["sentences"],
        "",
        f"loss {number(need['loss'])}, without memory {number(need['scale'])}",
    ]
    present = need["present"]
    lines += ["", f"{'lag':>9s} {'gain':>9s} {'95 %':>21s}"]
    lines.append(_row("present", present["gain"], present))
    for group in need["groups"]:
        low, high = group["low"], group["high"]
        name = str(low) if low == high else f"{low}-{high}"
        lines.append(_row(name, group["gain"], group) + ("  *" if group["significant"] else ""))
    lines += ["", f"{'inputs':>9s} {'rise':>9s} {'95 %':>21s}"]
    lines += [_row(str(point["inputs"]), point["rise"], point) for point in need["use"]]
    return "\n".join(lines) + "\n"


def _row(name: str, value: float, interval: Mapping[str, float]) -> str:
    low, high = number(interval["lower"]), number(interval["upper"])
    return f"{name:>9s} {number(value):>9s} {low:>10s} {high:>10s}"
