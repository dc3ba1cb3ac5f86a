"""Intercepts the entry of the autograd engine while a recorder is armed.

A loop is measured on its graph before the user's own backward pass frees it. Every backward pass, whether by
`Tensor.backward`, `torch.autograd.backward` or `torch.autograd.grad`, goes through one function of torch.autograd;
while listeners are registered it is replaced by one that calls the listeners first. It is restored when the last one
leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rnndiag.recorder.capture.compiled import shielded

Done = Callable[[], None]
Listener = Callable[[Sequence[Any], Sequence[Any], bool], Done | None]
"""Called with the roots of a backward pass, their gradients, and whether the graph stays afterwards.

What it returns is called when the pass is over.
"""

_ENTRY = "_engine_run_backward"
_listeners: list[Listener] = []
_originals: list[Callable[..., Any]] = []
_measuring: list[None] = []


def run_backward(*args: Any, **kwargs: Any) -> Any:
    """The original engine function, without listeners."""
    original = _originals[-1] if _originals else getattr(torch.autograd, _ENTRY)
    return original(*args, **kwargs)


def measuring() -> bool:
    """Whether a backward pass of the recorder itself is running."""
    return bool(_measuring)


@contextmanager
def own_passes() -> Iterator[None]:
    """Mark backward passes inside as the recorder's own, for which listeners are not called."""
    _measuring.append(None)
    try:
        yield
    finally:
        _measuring.pop()


def listen(listener: Listener) -> None:
    """Call this listener before every backward pass."""
    if not _listeners:
        _originals.append(getattr(torch.autograd, _ENTRY))
        setattr(torch.autograd, _ENTRY, shielded(_watched))
    _listeners.append(listener)


def leave(listener: Listener) -> None:
    """Unregister a listener."""
    if listener not in _listeners:
        return
    _listeners.remove(listener)
    if not _listeners:
        setattr(torch.autograd, _ENTRY, _originals.pop())


def _watched(roots: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
    # Not passes of a training step: those within a pass (a checkpoint's), gradients that are to be
    # differentiated again, and transforms of torch.func.
    inside = _measuring or torch._C._current_graph_task_id() >= 0
    create_graph = len(args) > 2 and args[2]
    if inside or create_graph or torch._C._functorch.peek_interpreter_stack() is not None:
        return run_backward(roots, *args, **kwargs)
    done = [listener(tuple(roots), tuple(args[0]), bool(args[1])) for listener in tuple(_listeners)]
    found = run_backward(roots, *args, **kwargs)
    for after in done:
        if after is not None:
            after()
    return found
