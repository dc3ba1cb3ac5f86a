"""Proves that an initial state is the end of an earlier call of which some sequences were reset in between.

Recurrent policies multiply the state by a mask of zeros and ones, or take another one where an episode is done. That
a state was carried on or reset, and not merely looks so, is read from the graph between both: its nodes are called by
themselves with a random cotangent, outside of the engine, so that no hook of anybody fires and nothing is accumulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.recorder.capture.call import OUTPUT, Call
from rnndiag.recorder.capture.node_tags import MARK, ONE_BY_ONE

LIMIT = 256
"""Nodes that lie behind an initial state at most; a larger graph is no mask."""

Edge = tuple[Any, int]


@dataclass(frozen=True)
class ResetProof:
    """An initial state that an earlier call ended with, except for the sequences that were reset."""

    call: int
    slot: int
    carried: Tensor
    """(B,) bool, on the CPU: the sequences that go on."""
    learnt: bool
    """A parameter takes part: what the others were reset to, say."""


@dataclass
class _Behind:
    """What lies behind a tensor in the graph, up to the ends of earlier calls."""

    nodes: set[Any] = field(default_factory=set)
    ends: dict[Edge, tuple[int, int]] = field(default_factory=dict)
    """Edge into the node that made the end -> (call, slot)."""
    learnt: bool = False


def bridge(value: Tensor, calls: Mapping[int, Call], since: int) -> ResetProof | None:
    """How a state as the next call gets it, (B, S) or (layers, B, S), follows from one end of the calls since then.

    Where it depends on more than one of them, a sequence that was not carried on may still remember.
    """
    if value.grad_fn is None:
        return None
    behind = _explore(value.grad_fn)
    if behind is None:
        return None
    later = {edge: end for edge, end in behind.ends.items() if end[0] >= since}
    if len(later) != 1:
        return None
    ((edge, (number, slot)),) = later.items()
    call = calls.get(number)
    if call is None:
        return None
    cotangent = _cotangent(value.shape, value.dtype, value.device)
    arrived = _pull_back((value.grad_fn, value.output_nr), edge, behind.nodes, cotangent)
    if arrived is None:
        return None
    carried = _carried(value.detach(), call, slot, cotangent, arrived)
    return None if carried is None else ResetProof(number, slot, carried, behind.learnt)


def _explore(start: Any) -> _Behind | None:
    """The graph behind a node; None if it is too large."""
    found, waiting = _Behind(), [start]
    while waiting:
        node = waiting.pop()
        if node in found.nodes:
            continue
        found.nodes.add(node)
        if len(found.nodes) > LIMIT:
            return None
        for child, number in node.next_functions:
            if child is None:
                continue
            end = child.metadata.get(MARK, {}).get(number)
            if end is not None:
                found.ends[child, number] = end
            elif hasattr(child, "variable"):
                found.learnt = found.learnt or isinstance(child.variable, nn.Parameter)
            else:
                waiting.append(child)
    return found


@lru_cache(maxsize=8)
def _cotangent(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random numbers without a zero that every floating type holds as they are; of a generator of their own."""
    draw = torch.Generator().manual_seed(20)
    return (torch.randint(1, 256, shape, generator=draw) - 128.5).to(device=device, dtype=dtype)


@torch.no_grad()
def _pull_back(start: Edge, end: Edge, nodes: set[Any], cotangent: Tensor) -> Tensor | None:
    """J^T times the cotangent, J the derivative between two edges of the graph; None where it cannot be had."""
    order = _path(start[0], end, nodes)
    leading = set(order)
    pending: dict[Any, dict[int, Tensor]] = {start[0]: {start[1]: cotangent}}
    arrived: Tensor | None = None
    for node in reversed(order):
        given = pending.pop(node, None)
        sent = None if given is None else _sent_by(node, given)
        if sent is None:
            return None
        for (child, number), gradient in zip(node.next_functions, sent, strict=False):
            if gradient is None or not (child in leading or (child, number) == end):
                continue
            gradient = _as_taken(gradient, child, number)
            if (child, number) == end:
                arrived = gradient if arrived is None else arrived + gradient
                continue
            slots = pending.setdefault(child, {})
            slots[number] = gradient if number not in slots else slots[number] + gradient
    return arrived


def _path(start: Any, end: Edge, nodes: set[Any]) -> list[Any]:
    """The nodes from which the end is reached, children before parents."""
    leads: dict[Any, bool] = {}
    order: list[Any] = []

    def visit(node: Any) -> bool:
        if node not in leads:
            leads[node] = False
            below = [
                edge == end or (edge[0] in nodes and visit(edge[0])) for edge in node.next_functions
            ]
            leads[node] = any(below)
            if leads[node]:
                order.append(node)
        return leads[node]

    visit(start)
    return order


def _sent_by(node: Any, given: dict[int, Tensor]) -> tuple[Tensor | None, ...] | None:
    """The gradients that a node sends on. A node written in Python may do anything, so it is not asked."""
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
    """As the engine hands it on: in the shape and type of the value. Older versions of torch do not tell them."""
    if not hasattr(node, "_input_metadata"):
        return gradient
    meta = node._input_metadata[number]
    if gradient.shape != torch.Size(meta.shape):
        gradient = gradient.sum_to_size(tuple(meta.shape))
    return gradient.to(meta.dtype)


_SAVED: dict[str, tuple[str, ...]] = {}
"""Kind of node -> the names of the tensors that it may have saved."""


def unpacks_quietly(node: Any) -> bool:
    """Whether what the node saved lies there as it is: unpacking it calls no hook (a checkpoint's runs the forward)."""
    kind = node.name()
    if kind not in _SAVED:
        _SAVED[kind] = tuple(name for name in dir(node) if name.startswith("_raw_saved_"))
    return all(_no_hook(getattr(node, name)) for name in _SAVED[kind])


def _no_hook(saved: Any) -> bool:
    if isinstance(saved, (tuple, list)):
        return all(map(_no_hook, saved))
    if hasattr(saved, "unpack_hook"):
        return saved.unpack_hook is None
    try:  # an older version of torch, which tells only whether a hook is active now
        with torch.autograd.graph.disable_saved_tensors_hooks("rnndiag looks at the graph"):
            return True
    except RuntimeError:
        return False


@torch.no_grad()
def _carried(
    value: Tensor, call: Call, slot: int, cotangent: Tensor, arrived: Tensor
) -> Tensor | None:
    """(B,) which sequences went on, if each was either carried on as it is or reset; None else."""
    end = _end_of(call, slot)
    if end is None:
        return None
    if slot == OUTPUT:
        arrived = arrived.transpose(0, 1) if call.plan.batch_first else arrived
        if arrived[:-1].any():
            return None
        arrived = arrived[-1:]
    if not arrived.numel() == end.numel() == value.numel():
        return None
    end, arrived = end.reshape(value.shape).to(value.dtype), arrived.reshape(value.shape)
    if torch.equal(arrived, cotangent) and torch.equal(value, end):  # the usual case, quickly
        return torch.ones(value.shape[-2], dtype=torch.bool)
    alike = (value == end) | (value.isnan() & end.isnan())
    went_on = ((arrived == cotangent) & alike).all(-1)
    known = went_on | (arrived == 0).all(-1)
    went_on, known = torch.stack([went_on, known]).cpu().unbind()
    by_layer = went_on.reshape(-1, value.shape[-2])
    if not known.all() or (by_layer != by_layer[:1]).any():
        return None
    return by_layer[0]


def _end_of(call: Call, slot: int) -> Tensor | None:
    """The call's end as it was: (B, S), or (layers, B, S); None if it was written over."""
    if slot in call.copies:
        return call.copies[slot]
    output = call.outputs[slot]
    if call.versions[slot] != output._version:
        return None
    if slot != OUTPUT:
        return output
    return output[:, -1:].transpose(0, 1) if call.plan.batch_first else output[-1:]
