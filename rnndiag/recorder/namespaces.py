"""The Callback base of whichever Lightning is in use: `lightning.pytorch`, `pytorch_lightning`, or both.

The two packages hold distinct Callback classes. An environment may have one of them only, and importing the second
takes seconds, so a base is taken from what is loaded already, and the other one joins if it turns up later.
"""

from __future__ import annotations

import sys
from importlib import import_module

from rnndiag.errors import NotInstalled

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def loaded_bases() -> tuple[type, ...]:
    """The Callback classes of the Lightning packages imported by this process so far."""
    found = []
    for name in PACKAGES:
        base = getattr(sys.modules.get(name), "Callback", None)
        if isinstance(base, type):  # absent while the package itself is half-way through its import
            found.append(base)
    return tuple(found)


def callback_base() -> type:
    """A Callback class to inherit from: of an imported package, else of the first installed one."""
    if loaded := loaded_bases():
        return loaded[0]
    for name in PACKAGES:
        if (found := _imported(name)) is not None:
            return found
    raise NotInstalled(
        "The callback needs Lightning, and neither `lightning` nor `pytorch_lightning` is installed.",
        "Install one of them, for example with `pip install lightning`, or use rnndiag.probe without Lightning.",
    )


def _imported(name: str) -> type | None:
    try:
        module = import_module(name)
    except ImportError:
        return None
    base: type = module.Callback
    return base


def adopt(cls: type) -> bool:
    """Add the bases of all packages imported by now to `cls` and its instances; True if one was added."""
    missing = tuple(base for base in loaded_bases() if not issubclass(cls, base))
    if missing:
        cls.__bases__ = (*cls.__bases__, *missing)
    return bool(missing)
