"""Stores trees of tensors as JSON and an npz of plain arrays: no pickle, so reading executes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnndiag.errors import NotSupported, RunUnreadable
from rnndiag.store.whole_files import whole_file

Arrays = dict[str, np.ndarray]


def encode(tree: Any, arrays: Arrays) -> Any:
    """The tree as JSON; its tensors are added to `arrays` under numbered names."""
    if isinstance(tree, Tensor):
        name = f"t{len(arrays)}"
        dtype = str(tree.dtype).removeprefix("torch.")
        stored = tree.detach().cpu().contiguous()
        arrays[name] = (
            stored.view(torch.int16) if stored.dtype == torch.bfloat16 else stored
        ).numpy()
        return {"tensor": name, "dtype": dtype}
    if isinstance(tree, np.ndarray):
        return {"array": encode(torch.from_numpy(tree), arrays)}
    if isinstance(tree, PackedSequence):
        return {"packed": [encode(part, arrays) for part in tree]}
    if isinstance(tree, Mapping):
        return {"dict": [[str(key), encode(value, arrays)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [encode(value, arrays) for value in tree]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"plain": tree}
    raise NotSupported(
        f"A snapshot cannot hold a {type(tree).__name__}.",
        "Give a batch of tensors in dicts, lists and tuples.",
    )


def decode(node: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Inverse of `encode`."""
    if not isinstance(node, dict) or not node:
        raise RunUnreadable("The snapshot is damaged: a node is not an object.", "Make it again.")
    if "tensor" in node:
        found = torch.from_numpy(np.ascontiguousarray(arrays[node["tensor"]]))
        return found.view(torch.bfloat16) if node.get("dtype") == "bfloat16" else found
    if "array" in node:
        return decode(node["array"], arrays).numpy()
    if "packed" in node:
        data, sizes, order, back = (decode(part, arrays) for part in node["packed"])
        return PackedSequence(data, sizes, order, back)
    if "dict" in node:
        return {key: decode(value, arrays) for key, value in node["dict"]}
    if "list" in node:
        return [decode(value, arrays) for value in node["list"]]
    if "tuple" in node:
        return tuple(decode(value, arrays) for value in node["tuple"])
    return node["plain"]


def save(path: Path, arrays: Arrays) -> None:
    """Write the arrays, uncompressed."""
    with whole_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> Arrays:
    """Read the arrays; raises for pickled content."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, KeyError) as error:
        raise RunUnreadable(
            f"{path} cannot be read: {error}.", "Make the snapshot again."
        ) from error
