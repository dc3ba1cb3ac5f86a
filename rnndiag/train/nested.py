"""Nested states: a tensor, or tensors in tuples, named tuples, lists, dicts and dataclasses; None stays None."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnndiag.errors import BadArgument


def map_leaves(function: Callable[..., Any], tree: Any, *others: Any, name: str = "") -> Any:
    """The same structure with each leaf replaced by `function(name, leaf, *corresponding leaves of the others)`.

    Args:
        function: Called once a leaf: a packed sequence, or whatever is no container.
        tree: The structure.
        *others: Structures of the same form.
        name: Of `tree` itself. Entries of dicts, named tuples and dataclasses have a name, those of others none.
    """

    def inner(key: str, *parts: Any) -> Any:
        return map_leaves(function, *parts, name=key)

    if isinstance(tree, PackedSequence):
        return function(name, tree, *others)
    if isinstance(tree, dict):
        return type(tree)(
            {key: inner(str(key), part, *(o[key] for o in others)) for key, part in tree.items()}
        )
    if isinstance(tree, (tuple, list)):
        names = getattr(tree, "_fields", None)
        keys = names or [""] * len(tree)
        parts = [inner(*at) for at in zip(keys, tree, *others, strict=True)]
        return type(tree)(*parts) if names else type(tree)(parts)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        keys = [field.name for field in dataclasses.fields(tree) if field.init]
        new = {key: inner(key, *(getattr(one, key) for one in (tree, *others))) for key in keys}
        return dataclasses.replace(tree, **new)
    return function(name, tree, *others)


def map_tensors(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """The same structure with each tensor replaced by `function(tensor, *corresponding tensors of the others)`.

    What is neither a tensor nor a container (numbers, strings, None), and a packed sequence, is kept as it is.
    """

    def change(name: str, leaf: Any, *rest: Any) -> Any:
        return function(leaf, *rest) if isinstance(leaf, Tensor) else leaf

    return map_leaves(change, tree, *others)


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
        # As many layers as sequences, (B, B, H): torch's layout is the commoner one.
        layered = part.dim() == 3 and part.shape[1] == batch
        if part.dim() > dim and part.shape[dim] == batch and (dim or not layered):
            return dim
    raise BadArgument(
        f"A state of shape {tuple(part.shape)} does not hold {batch} sequences.",
        "Give states (B, ...) or (layers, B, H); a carried state needs batches of equal size (drop_last=True).",
    )


def where_rows(
    rows: Tensor, new: Any, old: Any, batch_dim: Callable[[Tensor], int] | None = None
) -> Any:
    """Rows (sequences) of `new` where `rows` (B,) is True, those of `old` elsewhere.

    `batch_dim` gives the dim of a tensor that counts the sequences; None: see `batch_dim_of`.
    """

    def choose(fresh: Tensor, kept: Tensor) -> Tensor:
        shape = [1] * fresh.dim()
        shape[batch_dim_of(fresh, len(rows)) if batch_dim is None else batch_dim(fresh)] = -1
        return fresh.where(rows.to(fresh.device).view(shape), kept)

    return map_tensors(choose, new, old)
