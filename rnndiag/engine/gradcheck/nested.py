"""Arguments and results of a kernel as flat tuples of tensors: a state may be a tensor, or a tuple, list or dict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from torch import Tensor

from rnndiag.errors import BadArgument

Tensors: TypeAlias = tuple[Tensor, ...]
Function: TypeAlias = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]
"""A kernel with flat tuples of tensors: (inputs, state) -> (outputs, final state)."""


def leaves(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a nested value in order, each with its name, such as `state[0]`."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{name}[{key!r}]")
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from leaves(part, f"{name}[{index}]")
    else:
        raise BadArgument(
            f"{name} is {type(value).__name__}, not a tensor.",
            "gradcheck_recurrence takes tensors, and tuples, lists and dicts of tensors.",
        )


def flatten(value: Any, name: str) -> Tensors:
    """The tensors of a nested value in order."""
    return tuple(tensor for _, tensor in leaves(value, name))


def rebuild(template: Any, tensors: Iterator[Tensor]) -> Any:
    """A value with the structure of `template`, filled with `tensors` in order."""
    if isinstance(template, Tensor):
        return next(tensors)
    if isinstance(template, dict):
        return {key: rebuild(part, tensors) for key, part in template.items()}
    parts = [rebuild(part, tensors) for part in template]
    # A NamedTuple takes its fields one by one.
    return type(template)(*parts) if hasattr(template, "_fields") else type(template)(parts)
