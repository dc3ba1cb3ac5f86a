"""Intercepts the recurrent kernel that a module's forward calls, with the arguments that the kernel gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from torch.overrides import TorchFunctionMode

from rnndiag.engine.cells import Cell
from rnndiag.recorder.capture.compiled import shielded

OnKernel = Callable[[Cell, bool, Any, tuple[Any, ...], Mapping[str, Any]], Any]


class KernelMode(TorchFunctionMode):
    """Active during a recurrent module's forward; passes each kernel call to `on_kernel`."""

    def __init__(self, on_kernel: OnKernel, table: Mapping[Any, tuple[Cell, bool]]) -> None:
        super().__init__()
        self._on_kernel = shielded(on_kernel)
        self._table = table
        self._stack = ExitStack()
        self._open = False
        self._handling = 0
        """Nesting depth of kernel calls being handled."""

    def open(self) -> None:
        """Activate until `close`; no effect if active."""
        if not self._open:
            self._stack.enter_context(self)
            self._open = True

    def close(self) -> None:
        """Deactivate. Has no effect during a kernel call; close again afterwards."""
        # While a mode handles a call, torch has taken it off its stack, and puts it back afterwards.
        if not self._handling:
            self._open = False
            self._stack.close()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        try:
            found = self._table.get(func)
        except TypeError:  # an unhashable callable is no kernel of torch
            found = None
        if found is None:
            return func(*args, **kwargs)
        self._handling += 1
        try:
            return self._on_kernel(*found, func, args, kwargs)
        finally:
            self._handling -= 1
