"""Nested states: a tensor, or tensors in tuples, named tuples, lists, dicts and dataclasses; None stays None."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from rnndiag.errors import BadArgument


def map_tensors(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """The same structure with each tensor replaced by `function(tensor, *corresponding tensors of the others)`.

    Args:
        function: Called once a tensor.
        tree: The structure. What is neither a tensor nor a container (numbers, strings, None) is kept as it is.
        *others: Structures of the same form.
    """
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, dict):
        return type(tree)(
            {
                key: map_tensors(function, value, *(o[key] for o in others))
                for key, value in tree.items()
            }
        )
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "batch_sizes"):
        parts = [
            map_tensors(function, value, *(other[k] for other in others))
            for k, value in enumerate(tree)
        ]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree) if field.init]
        parts = [
            map_tensors(function, getattr(tree, name), *(getattr(other, name) for other in others))
            for name in names
        ]
        return dataclasses.replace(tree, **dict(zip(names, parts, strict=True)))
    return tree


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """Every tensor of a structure, in order."""
    found: list[Tensor] = []
    map_tensors(found.append, tree)
    yield from found


def detached(state: Any) -> Any:
    """The same state, detached from its graph."""
    return map_tensors(lambda part: part.detach(), state)


def batch_dim_of(part: Tensor, batch: int) -> int:
    """The dim of a state that counts the `batch` sequences: 0 for (B, ...), 1 for torch's (layers, B, H)."""
    for dim in (0, 1):
        if part.dim() > dim and part.shape[dim] == batch and (dim or not _is_layered(part, batch)):
            return dim
    raise BadArgument(
        f"A state of shape {tuple(part.shape)} does not hold {batch} sequences.",
        "Give states (B, ...) or (layers, B, H); a carried state needs batches of equal size (drop_last=True).",
    )


def _is_layered(part: Tensor, batch: int) -> bool:
    # As many layers as sequences, (B, B, H): torch's layout is the commoner one.
    return part.dim() == 3 and part.shape[1] == batch


def where_rows(rows: Tensor, new: Any, old: Any) -> Any:
    """Rows (sequences) of `new` where `rows` (B,) is True, those of `old` elsewhere."""

    def choose(fresh: Tensor, kept: Tensor) -> Tensor:
        shape = [1] * fresh.dim()
        shape[batch_dim_of(fresh, len(rows))] = -1
        return fresh.where(rows.to(fresh.device).view(shape), kept)

    return map_tensors(choose, new, old)
