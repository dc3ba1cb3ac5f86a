"""Finds and replaces the tensors of a batch in dicts, lists, tuples, dataclasses and packed sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Path = tuple[Any, ...]


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor with its path; a packed sequence as its padded tensor, batch first."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, PackedSequence):
        yield path, pad_packed_sequence(tree, batch_first=True)[0]
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from leaves(value, (*path, index))
    elif is_dataclass(tree) and not isinstance(tree, type):
        for field in fields(tree):
            yield from leaves(getattr(tree, field.name), (*path, field.name))


def changed(tree: Any, change: Callable[[Path, Tensor], Tensor], path: Path = ()) -> Any:
    """The same structure with every tensor replaced by `change(path, tensor)`; nothing is written in place."""
    if isinstance(tree, Tensor):
        return change(path, tree)
    if isinstance(tree, PackedSequence):
        padded, lengths = pad_packed_sequence(tree, batch_first=True)
        return pack_padded_sequence(
            change(path, padded),
            lengths,
            batch_first=True,
            enforce_sorted=tree.sorted_indices is None,
        )
    if isinstance(tree, Mapping):
        copy = {key: changed(value, change, (*path, key)) for key, value in tree.items()}
        return copy if type(tree) is dict else _like(tree, copy)
    if isinstance(tree, list | tuple):
        items = [changed(value, change, (*path, index)) for index, value in enumerate(tree)]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(
            tree,
            **{
                f.name: changed(getattr(tree, f.name), change, (*path, f.name))
                for f in fields(tree)
                if f.init
            },
        )
    return tree


def _like(tree: Mapping[Any, Any], copy: dict[Any, Any]) -> Any:
    """A mapping of the same type with new content, or a dict if that type cannot be constructed."""
    try:
        return type(tree)(copy)  # type: ignore[call-arg]
    except TypeError:
        return copy
