"""Finds and replaces the tensors in nested values: tuples, lists, dicts, dataclasses and packed sequences."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def map_tensors(
    value: Any, change: Callable[[Tensor, str], Tensor], path: str = "", padded: bool = False
) -> Any:
    """The same structure with every tensor replaced; nothing is written in place.

    Args:
        value: The structure. Anything that is neither a tensor nor a container is kept as it is.
        change: (tensor, its place, such as `0.h`) -> the new tensor.
        path: Place of `value` itself.
        padded: Give a packed sequence to `change` as one padded tensor, batch first, in place of its parts.
    """
    if isinstance(value, Tensor):
        return change(value, path)
    if padded and isinstance(value, PackedSequence):
        steps, lengths = pad_packed_sequence(value, batch_first=True)
        in_order = value.sorted_indices is None
        return pack_padded_sequence(
            change(steps, path), lengths, batch_first=True, enforce_sorted=in_order
        )

    def inner(key: Any, part: Any) -> Any:
        return map_tensors(part, change, f"{path}.{key}" if path else str(key), padded)

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


def named_tensors(value: Any, padded: bool = False) -> list[tuple[str, Tensor]]:
    """All tensors of a structure with their places, in order; `padded` as in `map_tensors`."""
    found: list[tuple[str, Tensor]] = []

    def keep(tensor: Tensor, path: str) -> Tensor:
        found.append((path, tensor))
        return tensor

    map_tensors(value, keep, padded=padded)
    return found


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a structure, in order."""
    return [tensor for _, tensor in named_tensors(value)]


def all_finite(value: Any) -> bool:
    """Whether every number in every floating-point tensor of a structure is finite."""
    tensors = (tensor for tensor in tensors_in(value) if tensor.is_floating_point())
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
