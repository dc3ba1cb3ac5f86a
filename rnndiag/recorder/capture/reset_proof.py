"""Proves that an initial state is the final state of an earlier call with some sequences reset in between.

Recurrent policies multiply the state by a mask of zeros and ones, or select another one at the end of an episode. That
a sequence was carried on or reset is read from the graph in between, with a random cotangent: values alone could agree
by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.engine.segments.marks import Edge
from rnndiag.recorder.capture.call import OUTPUT, Call
from rnndiag.recorder.capture.node_calls import pull_back
from rnndiag.recorder.capture.node_tags import MARK

LIMIT = 256
"""Most nodes behind an initial state; a larger graph is no mask."""


@dataclass(frozen=True)
class ResetProof:
    """An initial state that equals the final state of an earlier call, except for sequences that were reset."""

    call: int
    slot: int
    carried: Tensor
    """(B,) bool, on the CPU: sequences that were carried on."""
    learnt: bool
    """Whether a parameter takes part, such as a learnt initial state."""


@dataclass
class _Behind:
    """The graph behind a tensor, up to the final states of earlier calls."""

    nodes: set[Any] = field(default_factory=set)
    ends: dict[Edge, tuple[int, int]] = field(default_factory=dict)
    """Edge into the node of a final state -> (call, slot)."""
    learnt: bool = False


def bridge(value: Tensor, calls: Mapping[int, Call], since: int) -> ResetProof | None:
    """Prove from which earlier call's final state a state, (B, S) or (layers, B, S), was made, up to resets.

    None if it depends on several calls: a sequence that was not carried on from one may remember the other.
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
    with torch.no_grad():
        start = {(value.grad_fn, value.output_nr): cotangent}
        arrived = (pull_back(start, {edge}, behind.nodes) or {}).get(edge)
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
    """Random numbers without zeros, exact in every floating type; from a generator of its own."""
    draw = torch.Generator().manual_seed(20)
    return (torch.randint(1, 256, shape, generator=draw) - 128.5).to(device=device, dtype=dtype)


@torch.no_grad()
def _carried(
    value: Tensor, call: Call, slot: int, cotangent: Tensor, arrived: Tensor
) -> Tensor | None:
    """(B,) bool: sequences carried on, if each was either carried on unchanged or reset; else None."""
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
    """The final state of a call: (B, S), or (layers, B, S); None if it was overwritten."""
    if slot in call.copies:
        return call.copies[slot]
    output = call.outputs[slot]
    if call.versions[slot] != output._version:
        return None
    if slot != OUTPUT:
        return output
    return output[:, -1:].transpose(0, 1) if call.plan.batch_first else output[-1:]
