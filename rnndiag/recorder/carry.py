"""`rnndiag.carry`: marks the state that a loop carries from one step to the next."""

from __future__ import annotations

import sys
from typing import Any, Protocol

import torch


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
