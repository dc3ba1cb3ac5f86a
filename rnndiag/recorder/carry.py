"""`rnndiag.carry`: marks the state that a loop carries from one step to the next."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class Collector(Protocol):
    """Receives the calls of `carry` while it records."""

    def carried(self, site: str, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """The state with its tensors marked."""


_collectors: dict[int, Collector] = {}
"""By id, as collectors may compare equal; in the order in which they were registered."""


def carry(*state: Any, name: str | None = None) -> Any:
    """Mark the state that a loop carries from one step to the next.

    Call it at the start of the loop's body, with everything that is kept from step to step. Outside of a recording it
    returns its arguments unchanged; inside of `rnndiag.probe` or a recorded step of the callback, the gradient is
    followed from step to step through what it returns, whatever operations a step consists of.

    Args:
        state: Tensors, or tuples, lists, dicts, dataclasses and None of them; batch first.
        name: The name of the loop in the recording. Default: the Python module and line of the call.

    Returns:
        The state, one value if one was given, else a tuple.

    Example:
        >>> for x in inputs:
        ...     h, c = rnndiag.carry(h, c)
        ...     h, c = step(x, h, c)
    """
    if _collectors and torch.is_grad_enabled():
        site = name or _call_site()
        for collector in tuple(_collectors.values()):
            state = collector.carried(site, state)
    return state[0] if len(state) == 1 else state


def _call_site() -> str:
    frame = sys._getframe(2)
    return f"{frame.f_globals.get('__name__', 'loop')}:{frame.f_lineno}"


def collect(collector: Collector) -> None:
    """Register a collector, which then receives every call of `carry`."""
    _collectors[id(collector)] = collector


def stop_collecting(collector: Collector) -> None:
    """Unregister a collector."""
    _collectors.pop(id(collector), None)


def map_tensors(value: Any, change: Callable[[Tensor, str], Tensor], path: str = "") -> Any:
    """Replace every tensor in a structure by change(tensor, place), where place is such as `0.h`."""
    if isinstance(value, Tensor):
        return change(value, path)

    def inner(key: Any, part: Any) -> Any:
        return map_tensors(part, change, f"{path}.{key}" if path else str(key))

    if isinstance(value, (tuple, list)):
        parts = [inner(k, part) for k, part in enumerate(value)]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping) and hasattr(value, "__setitem__"):
        new = copy.copy(value)
        for key, part in value.items():
            new[key] = inner(key, part)
        return new
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed: Any = copy.copy(value)
        for field in dataclasses.fields(value):
            if hasattr(value, field.name):
                part = inner(field.name, getattr(value, field.name))
                object.__setattr__(changed, field.name, part)
        return changed
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a structure, in order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor, _: str) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, keep)
    return found
