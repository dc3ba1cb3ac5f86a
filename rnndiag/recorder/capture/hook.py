"""A module hook that works on one module only: copies and pickles of the model carry a no-op instead."""

from __future__ import annotations

import string
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from rnndiag.recorder.capture.compiled import is_compiling
from rnndiag.recorder.capture.weights import weights_asleep

_replays: list[None] = []
"""One entry per running replay; calls made by a replay are not recorded."""


@contextmanager
def replaying() -> Iterator[None]:
    """Modules called inside are not recorded."""
    _replays.append(None)
    try:
        yield
    finally:
        _replays.pop()


@contextmanager
def unwatched(model: nn.Module) -> Iterator[None]:
    """Disable the hooks that model and weights have now; hooks that a probe adds inside work."""
    tables = [
        table
        for module in model.modules()
        for table in (module._forward_pre_hooks, module._forward_hooks)
    ]
    hooks = {hook for table in tables for hook in table.values() if isinstance(hook, ModuleHook)}
    before = {hook: hook._watch for hook in hooks}
    for hook in hooks:
        hook._watch = lambda *call: None
    try:
        with weights_asleep():
            yield
    finally:
        for hook, watch in before.items():
            hook._watch = watch


class ModuleHook:
    """Calls `watch(compiling, module, ...)` for the very module it was registered on, and for no other.

    A deep copy (weight averaging, snapshots) or a pickle of the module takes a method of the standard library along
    that accepts a hook's three arguments and returns None: it holds nothing alive and needs no rnndiag to load.
    """

    def __init__(
        self,
        module: nn.Module,
        watch: Callable[..., Any],
        on_fault: Callable[[Exception], None] | None = None,
    ) -> None:
        # The module holds the hook: a strong reference would be a cycle.
        self._module = weakref.ref(module)
        self._watch, self._on_fault = watch, on_fault

    def __call__(self, module: nn.Module, *rest: Any) -> Any:
        """Called by torch. Returns None if the module is not the registered one. Errors of `watch` go to `on_fault`."""
        try:
            if self._module() is not module or _replays:
                return None
            return self._watch(is_compiling(), module, *rest)
        except Exception as error:
            if self._on_fault is None:
                raise
            self._on_fault(error)
            return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        # A function of the standard library that takes three arguments and returns None.
        return string.Formatter().check_unused_args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        return getattr, (string.Formatter(), "check_unused_args")
