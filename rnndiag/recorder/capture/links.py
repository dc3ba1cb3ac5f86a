"""Finds that an initial state is the end of an earlier call, so that several calls are known as one recurrence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.engine.cells import State
from rnndiag.recorder.capture.call import OUTPUT, Call, Link

Address = tuple[int, int, tuple[int, ...], tuple[int, ...]]

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
_ONE_BY_ONE = ("BackwardHookFunctionBackward",)
"""Nodes of several tensors that hand each of them on as it is: a module's full backward hook."""
_MAX_WALK = 16


def address(row: Tensor) -> Address:
    """Where a (B, S) tensor lies; strides of axes of length one say nothing."""
    strides = tuple(0 if n == 1 else s for n, s in zip(row.shape, row.stride(), strict=True))
    return row.untyped_storage().data_ptr(), int(row.storage_offset()), tuple(row.shape), strides


def mark(output: Tensor, call: int, slot: int) -> None:
    """Leave a sign on the graph node that made an output. It lives as long as the node and keeps nothing alive."""
    node: Any = output.grad_fn
    if node is not None:
        node.metadata.setdefault(MARK, {})[output.output_nr] = (call, slot)


def marked_source(tensor: Tensor) -> tuple[int, int] | None:
    """(call, slot) of the output that a tensor is, through operations that hand values and gradients on as they are."""
    node: Any = tensor.grad_fn
    number = tensor.output_nr
    for _ in range(_MAX_WALK):
        if node is None:
            return None
        found = node.metadata.get(MARK, {}).get(number)
        if found is not None:
            return found  # type: ignore[no-any-return]
        if node.name() in _ONE_BY_ONE and number < len(node.next_functions):
            node, number = node.next_functions[number]
        elif _straight(node.name()) and node.next_functions:
            node, number = node.next_functions[0]
        else:
            return None
    return None


def _straight(name: str) -> bool:
    return name.rstrip("0123456789").removesuffix("Backward") in _STRAIGHT


def start_of(hx: State, links: Mapping[tuple[int, int], Link]) -> State:
    """An initial state to keep: ends of calls are kept by those, everything else is copied."""
    ends = {part for part, _ in links}
    return tuple(part.detach() if k in ends else part.detach().clone() for k, part in enumerate(hx))


def kind_of_start(tensor: Tensor) -> str:
    """zero | given | learnt: where an initial state comes from that is no end of a call."""
    if not tensor.requires_grad:
        return "given" if bool(tensor.any()) else "zero"
    node: Any = tensor.grad_fn
    if node is None:
        return "learnt" if isinstance(tensor, nn.Parameter) else "given"
    for _ in range(_MAX_WALK):
        if node is None:
            return "given"
        if hasattr(node, "variable"):
            return "learnt" if isinstance(node.variable, nn.Parameter) else "given"
        if not (_straight(node.name()) or node.name().startswith("Repeat")):
            return "given"
        node = node.next_functions[0][0] if node.next_functions else None
    return "given"


class Ends:
    """The ends of all calls so far, by where they lie in memory. The calls keep that memory alive."""

    def __init__(self) -> None:
        self._at: dict[Address, tuple[Call, int, int]] = {}
        self._not_yet: list[Call] = []
        """Calls whose ends are not looked up by address yet."""
        self._calls: dict[int, Call] = {}
        self._held: list[Tensor] = []
        self._latest: dict[str, Call] = {}

    def add(self, call: Call) -> None:
        """Register a call's final state, and its last output where that is the final h."""
        self._calls[call.number] = call
        self._not_yet.append(call)
        if not call.plan.packed:
            self._latest[call.owner] = call

    def _find(self, row: Tensor) -> tuple[Call, int, int] | None:
        for call in self._not_yet:
            for slot, output in call.outputs.items():
                for index, end in enumerate(_rows(call, slot, output)):
                    if end is not None:
                        self._at[address(end)] = (call, slot, index)
        self._not_yet.clear()
        found = self._at.get(address(row))
        return None if found is None or _written(*found[:2]) else found

    def add_alias(self, call: Call, slot: int, value: Tensor) -> None:
        """The final state as the module returned it, in the user's order of sequences: (layers*dirs, B, S_p)."""
        value = value.detach()
        self._held.append(value)
        for index, row in enumerate(value):
            self._at[address(row)] = (call, slot, index)

    def links(self, hx: State, owner: str, one_step: bool) -> dict[tuple[int, int], Link]:
        """The links of every part and layer of an initial state as the module got it."""
        found = {}
        for part, value in enumerate(hx):
            link = self._very_end(value) if one_step else None
            if link is not None:
                found[part, 0] = link
                continue
            source = marked_source(value) if value.requires_grad else None
            rows = (value,) if one_step else value.unbind(0)
            for index, row in enumerate(rows):
                link = self._link(row.detach(), value, source, owner, part, index)
                if link is not None:
                    found[part, index] = link
        return found

    def _very_end(self, value: Tensor) -> Link | None:
        """The usual case of a loop: the state is the tensor that the last step returned."""
        node: Any = value.grad_fn
        source = None if node is None else node.metadata.get(MARK, {}).get(value.output_nr)
        call = None if source is None else self._calls.get(source[0])
        if source is None or call is None or not call.plan.one_step or _written(call, source[1]):
            return None
        return Link(call.number, source[1], 0, attached=True, straight=True)

    def _link(
        self,
        row: Tensor,
        value: Tensor,
        source: tuple[int, int] | None,
        owner: str,
        part: int,
        index: int,
    ) -> Link | None:
        end = self._find(row)
        if end is not None:
            call, slot, at = end
            attached = value.grad_fn is not None
            return Link(call.number, slot, at, attached, attached and source == (call.number, slot))
        earlier = self._latest.get(owner)
        if earlier is None:
            return None
        slot = 1 + part
        rows = _rows(earlier, slot, earlier.outputs[slot]) if slot in earlier.outputs else ()
        if index >= len(rows) or not _equal(rows[index], row):
            return None
        if not value.requires_grad:
            return Link(earlier.number, slot, index, attached=False, straight=False)
        if source == (earlier.number, slot):
            return Link(earlier.number, slot, index, attached=True, straight=True)
        return None

    def clear(self) -> None:
        """Forget all calls."""
        self._at.clear()
        self._not_yet.clear()
        self._calls.clear()
        self._held.clear()
        self._latest.clear()


def _written(call: Call, slot: int) -> bool:
    """Whether somebody wrote to that output in place."""
    return call.versions[slot] != call.outputs[slot]._version


def _rows(call: Call, slot: int, output: Tensor) -> list[Tensor | None]:
    plan = call.plan
    if plan.one_step:
        return [output]
    if slot != OUTPUT:
        return list(output.unbind(0))
    if plan.packed or plan.directions == 2:
        return []
    last = output[:, -1] if plan.batch_first else output[-1]
    return [*[None] * (plan.layers - 1), last]


def _equal(one: Tensor | None, other: Tensor) -> bool:
    if one is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(one, other)) and bool(one.any())
