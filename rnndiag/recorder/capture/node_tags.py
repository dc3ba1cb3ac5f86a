"""Marks on the graph nodes of call outputs, and the search for them through views and copies."""

from __future__ import annotations

from typing import Any

from torch import Tensor

MARK = "rnndiag"
"""Key in a graph node's metadata: {output number: (call, slot)}."""

_STRAIGHT = (
    "View",
    "UnsafeView",
    "Alias",
    "Unsqueeze",
    "Squeeze",
    "Select",
    "Slice",
    "Transpose",
    "T",
    "Permute",
    "AsStrided",
    "Expand",
    "Unbind",
    "Split",
    "Clone",
    "Reshape",
    "Narrow",
    "Chunk",
    "Contiguous",
)
ONE_BY_ONE = ("BackwardHookFunctionBackward",)
"""Nodes that pass several tensors on unchanged, one by one: a module's full backward hook."""
MAX_WALK = 16


def mark(output: Tensor, call: int, slot: int) -> None:
    """Mark the graph node of an output. The mark lives as long as the node and keeps nothing alive."""
    node: Any = output.grad_fn
    if node is not None:
        node.metadata.setdefault(MARK, {})[output.output_nr] = (call, slot)


def marked_source(tensor: Tensor) -> tuple[int, int] | None:
    """(call, slot) of the output that a tensor equals, through operations that pass values and gradients on
    unchanged."""
    node: Any = tensor.grad_fn
    number = tensor.output_nr
    for _ in range(MAX_WALK):
        if node is None:
            return None
        found = node.metadata.get(MARK, {}).get(number)
        if found is not None:
            return found  # type: ignore[no-any-return]
        if node.name() in ONE_BY_ONE and number < len(node.next_functions):
            node, number = node.next_functions[number]
        elif hands_on(node.name()) and node.next_functions:
            node, number = node.next_functions[0]
        else:
            return None
    return None


def hands_on(name: str) -> bool:
    """Whether a node of that name passes values and gradients on unchanged."""
    return name.rstrip("0123456789").removesuffix("Backward") in _STRAIGHT
