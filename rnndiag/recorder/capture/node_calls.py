"""Pulls gradients through nodes of the user's graph by calling the nodes directly, without the autograd engine.

No hooks fire, nothing is accumulated, and the graph is preserved. Under `torch.enable_grad` the results are part of a
graph of their own, which can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor

from rnndiag.engine.segments.marks import Edge
from rnndiag.recorder.capture.node_tags import ONE_BY_ONE


def leading(
    starts: Mapping[Edge, Tensor], ends: AbstractSet[Edge], nodes: AbstractSet[Any]
) -> list[Any]:
    """Those nodes through which a path from a start to an end goes, children before parents."""
    leads: dict[Any, bool] = {}
    order: list[Any] = []
    waiting = [(edge[0], False) for edge in starts]
    while waiting:
        node, visited = waiting.pop()
        if visited:
            leads[node] = any(e in ends or leads.get(e[0], False) for e in node.next_functions)
            if leads[node]:
                order.append(node)
        elif node not in leads:
            leads[node] = False
            waiting.append((node, True))
            waiting.extend((e[0], False) for e in node.next_functions if e[0] in nodes)
    return order


def pull_back(
    starts: Mapping[Edge, Tensor], ends: AbstractSet[Edge], nodes: AbstractSet[Any]
) -> dict[Edge, Tensor] | None:
    """The gradients at the ends for given gradients at the starts; None if a node cannot be called.

    Args:
        starts: Edge of the graph -> the gradient there.
        ends: Edges at which the way stops.
        nodes: Those that may be passed, the starts' own among them.
    """
    order = leading(starts, ends, nodes)
    passed = set(order)
    pending: dict[Any, dict[int, Tensor]] = {}
    for (node, number), gradient in starts.items():
        pending.setdefault(node, {})[number] = gradient
    arrived: dict[Edge, Tensor] = {}
    for node in reversed(order):
        given = pending.pop(node, None)
        if given is None:  # the nodes before it send no gradient
            continue
        sent = _sent_by(node, given)
        if sent is None:
            return None
        for edge, value in zip(node.next_functions, sent, strict=False):
            if value is None or not (edge in ends or edge[0] in passed):
                continue
            gradient = _as_taken(value, *edge)
            if edge in ends:
                arrived[edge] = arrived[edge] + gradient if edge in arrived else gradient
                continue
            slots = pending.setdefault(edge[0], {})
            slots[edge[1]] = slots[edge[1]] + gradient if edge[1] in slots else gradient
    return arrived


def _sent_by(node: Any, given: dict[int, Tensor]) -> tuple[Tensor | None, ...] | None:
    """The gradients that a node returns; None for a node written in Python, which may have side effects."""
    count = len(node._input_metadata) if hasattr(node, "_input_metadata") else max(given) + 1
    inputs = tuple(given.get(place) for place in range(count))
    kind: str = node.name()
    if isinstance(node, torch._C._FunctionBase):
        return inputs if kind in ONE_BY_ONE else None
    if not unpacks_quietly(node):
        return None
    try:
        sent = node(*inputs)
    except (RuntimeError, TypeError):  # freed, or written to in place: backward will say so itself
        return None
    return sent if isinstance(sent, tuple) else (sent,)


def _as_taken(gradient: Tensor, node: Any, number: int) -> Tensor:
    """The gradient in shape and type of the value, as the engine passes it on; older torch versions lack this
    metadata."""
    if not hasattr(node, "_input_metadata"):
        return gradient
    meta = node._input_metadata[number]
    if gradient.shape != torch.Size(meta.shape):
        gradient = gradient.sum_to_size(tuple(meta.shape))
    return gradient.to(meta.dtype)


_SAVED: dict[str, tuple[str, ...]] = {}
"""Kind of node -> the names of the tensors that it may have saved."""


def unpacks_quietly(node: Any) -> bool:
    """Whether the saved tensors of a node have no unpack hooks (a checkpoint's would run the forward again)."""
    kind = node.name()
    if kind not in _SAVED:
        _SAVED[kind] = tuple(name for name in dir(node) if name.startswith("_raw_saved_"))
    return all(_no_hook(getattr(node, name)) for name in _SAVED[kind])


def _no_hook(saved: Any) -> bool:
    if isinstance(saved, (tuple, list)):
        return all(map(_no_hook, saved))
    if hasattr(saved, "unpack_hook"):
        return saved.unpack_hook is None
    try:  # older versions of torch can only tell whether a hook is active now
        with torch.autograd.graph.disable_saved_tensors_hooks("rnndiag looks at the graph"):
            return True
    except RuntimeError:
        return False
