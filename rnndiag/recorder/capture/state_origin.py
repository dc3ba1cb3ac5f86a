"""Detects that an initial state is the final state of an earlier call, so that both belong to one recurrence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.engine.cells import State
from rnndiag.recorder.capture.call import OUTPUT, Call, StateLink
from rnndiag.recorder.capture.node_tags import MARK, MAX_WALK, hands_on, marked_source
from rnndiag.recorder.capture.reset_proof import bridge

Address = tuple[int, int, tuple[int, ...], tuple[int, ...]]

GIVE_UP = 3
"""After this many states of one module that were changed other than by a reset, no more are examined."""


def address(row: Tensor) -> Address:
    """Memory location of a (B, S) tensor; strides of axes of length one are ignored."""
    strides = tuple(0 if n == 1 else s for n, s in zip(row.shape, row.stride(), strict=True))
    return row.untyped_storage().data_ptr(), int(row.storage_offset()), tuple(row.shape), strides


def start_of(hx: State, links: Mapping[tuple[int, int], StateLink]) -> State:
    """An initial state for storage: copied, except for final states, which their calls keep alive unchanged."""
    ends = {part for (part, _), link in links.items() if link.carried is None}
    return tuple(part.detach() if k in ends else part.detach().clone() for k, part in enumerate(hx))


def kind_of_start(tensor: Tensor) -> str:
    """zero | given | learnt: the origin of an initial state that is not the final state of a call."""
    if not tensor.requires_grad:
        return "given" if bool(tensor.any()) else "zero"
    node: Any = tensor.grad_fn
    if node is None:
        return "learnt" if isinstance(tensor, nn.Parameter) else "given"
    for _ in range(MAX_WALK):
        if node is None:
            return "given"
        if hasattr(node, "variable"):
            return "learnt" if isinstance(node.variable, nn.Parameter) else "given"
        if not (hands_on(node.name()) or node.name().startswith("Repeat")):
            return "given"
        node = node.next_functions[0][0] if node.next_functions else None
    return "given"


class Ends:
    """The final states of all calls so far, by memory address. The calls keep that memory alive."""

    def __init__(self) -> None:
        self._at: dict[Address, tuple[Call, int, int]] = {}
        self._not_yet: list[Call] = []
        """Calls whose final states are not in the table yet."""
        self._calls: dict[int, Call] = {}
        self._held: list[Tensor] = []
        self._latest: dict[str, Call] = {}
        self._first: dict[str, int] = {}
        """Module -> the number of its first call."""
        self._changed: Counter[str] = Counter()
        """Module -> number of states that were changed between calls other than by a reset."""

    def add(self, call: Call) -> None:
        """Register a call's final state, and its last output if that is the final h."""
        self._calls[call.number] = call
        self._not_yet.append(call)
        self._first.setdefault(call.owner, call.number)
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
        """Register a final state as the module returned it, in the user's order of sequences: (layers*dirs, B, S_p)."""
        value = value.detach()
        self._held.append(value)
        for index, row in enumerate(value):
            self._at[address(row)] = (call, slot, index)

    def links(self, hx: State, owner: str, one_step: bool) -> dict[tuple[int, int], StateLink]:
        """(part, layer) -> link, for an initial state as the module got it."""
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
            if (part, 0) not in found and owner in self._latest:
                found |= self._after_reset(value, owner, part, len(rows))
        return found

    def _after_reset(
        self, value: Tensor, owner: str, part: int, count: int
    ) -> dict[tuple[int, int], StateLink]:
        """(part, layer) -> link, for a part of which some sequences were reset since the end of that module's last
        call."""
        if value.grad_fn is None or self._changed[owner] >= GIVE_UP:
            return {}
        seen = bridge(value, self._calls, self._first[owner])
        if seen is None or self._calls[seen.call].owner != owner:
            self._changed[owner] += 1
            return {}
        begins = ""
        if not seen.carried.all():
            # The rows that were not carried on show what sequences were reset to.
            fresh = value.detach()[..., ~seen.carried.to(value.device), :]
            begins = "learnt" if seen.learnt else "given" if bool(fresh.any()) else "zero"
        return {
            (part, index): StateLink(
                seen.call, seen.slot, index, True, False, carried=seen.carried, begins=begins
            )
            for index in range(count)
        }

    def _very_end(self, value: Tensor) -> StateLink | None:
        """The usual case of a loop: the state is the very tensor that the last step returned."""
        node: Any = value.grad_fn
        source = None if node is None else node.metadata.get(MARK, {}).get(value.output_nr)
        call = None if source is None else self._calls.get(source[0])
        if source is None or call is None or not call.plan.one_step or _written(call, source[1]):
            return None
        return StateLink(call.number, source[1], 0, attached=True, straight=True)

    def _link(
        self,
        row: Tensor,
        value: Tensor,
        source: tuple[int, int] | None,
        owner: str,
        part: int,
        index: int,
    ) -> StateLink | None:
        end = self._find(row)
        if end is not None:
            call, slot, at = end
            attached = value.grad_fn is not None
            return StateLink(
                call.number, slot, at, attached, attached and source == (call.number, slot)
            )
        earlier = self._latest.get(owner)
        if earlier is None:
            return None
        slot = 1 + part
        rows = _rows(earlier, slot, earlier.outputs[slot]) if slot in earlier.outputs else ()
        if index >= len(rows) or not _equal(rows[index], row):
            return None
        if not value.requires_grad:
            return StateLink(earlier.number, slot, index, attached=False, straight=False)
        if source == (earlier.number, slot):
            return StateLink(earlier.number, slot, index, attached=True, straight=True)
        return None

    def clear(self) -> None:
        """Drop all calls."""
        self._at.clear()
        self._not_yet.clear()
        self._calls.clear()
        self._held.clear()
        self._latest.clear()
        self._first.clear()
        self._changed.clear()


def _written(call: Call, slot: int) -> bool:
    """Whether that output was written to in place."""
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
