"""Turns the numbers of a run into findings, by a project's bounds and its baseline.

The public names load at their first use, so that `rnndiag --help` needs no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and editors see; a test holds it against the table below
    from rnndiag.health.baseline import Baseline as Baseline
    from rnndiag.health.baseline import read_baseline as read_baseline
    from rnndiag.health.config import Config as Config
    from rnndiag.health.config import read_config as read_config
    from rnndiag.health.finding import Finding as Finding
    from rnndiag.health.gate import check as check
    from rnndiag.health.gate import look as look
    from rnndiag.health.outcome import Verdict as Verdict
    from rnndiag.health.outcome import exit_code as exit_code
    from rnndiag.health.outcome import verdict as verdict
    from rnndiag.health.rule import all_rules as all_rules

_PUBLIC = {
    "Baseline": "baseline",
    "read_baseline": "baseline",
    "Config": "config",
    "read_config": "config",
    "Finding": "finding",
    "check": "gate",
    "look": "gate",
    "exit_code": "outcome",
    "all_rules": "rule",
    "Verdict": "outcome",
    "verdict": "outcome",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> object:
    """Import a public name at its first use, and cache it."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value
