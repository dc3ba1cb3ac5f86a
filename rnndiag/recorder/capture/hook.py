"""A module hook that belongs to one module only: copies and pickles of the model carry a stand-in that does nothing."""

from __future__ import annotations

import string
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from rnndiag.recorder.capture.compiled import is_compiling

_replays: list[None] = []
"""One entry a replay that is running: what a replay calls is no call of the user's."""


@contextmanager
def replaying() -> Iterator[None]:
    """Modules called inside are not watched."""
    _replays.append(None)
    try:
        yield
    finally:
        _replays.pop()


class ModuleHook:
    """Calls `watch(compiling, module, ...)` for the very module it was registered on, and for no other.

    A deep copy (weight averaging, snapshots) or a pickle of the module takes a method of the standard library along
    that accepts a hook's three arguments and returns None: it holds nothing alive and needs no rnndiag to load.
    """

    def __init__(self, module: nn.Module, watch: Callable[..., Any]) -> None:
        self._module = weakref.ref(module)
        self._watch = watch

    def __call__(self, module: nn.Module, *rest: Any) -> Any:
        """What torch calls; None where the module is a stranger."""
        if self._module() is not module or _replays:
            return None
        return self._watch(is_compiling(), module, *rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return string.Formatter().check_unused_args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        return getattr, (string.Formatter(), "check_unused_args")
