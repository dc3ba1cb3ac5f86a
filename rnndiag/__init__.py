"""Gradient diagnostics for recurrent nets: how far back a gradient reaches, and what cutting costs.

`import rnndiag` loads nothing but this file: each public name is imported at its first use, so a
report can be read, and a run checked, where there is no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and editors see; a test holds it against the tables below
    from rnndiag import errors as errors

__version__ = "0.1.0"

# public name -> the module that defines it
_PUBLIC: dict[str, str] = {}

# public module -> its full name
_PUBLIC_MODULES = {
    "errors": "rnndiag.errors",
}

__all__ = ["__version__", *_PUBLIC, *_PUBLIC_MODULES]


def __getattr__(name: str) -> object:
    """Import a public name at its first use, and keep it."""
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
    elif name in _PUBLIC_MODULES:
        value = import_module(_PUBLIC_MODULES[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
