"""Joins calls that pass one state on into one recurrence: decoding step by step, cell loops, attached chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from rnndiag.recorder.capture.call import OUTPUT, Call
from rnndiag.recorder.capture.weights import same_values

Chain = tuple[Call, ...]


def chains(calls: Sequence[Call]) -> list[Chain]:
    """The calls of one backward pass grouped into recurrences, in order of their first calls.

    A call continues an earlier one if its whole state is the final state of that call, up to sequences that were reset
    in between, gradients flow back, the weights are the same and no other call starts from that final state. Every
    other call starts a new recurrence.
    """
    by_number = {call.number: call for call in calls}
    starters = Counter(
        number
        for call in calls
        for number in {link.call for link in call.links.values() if link.attached}
    )
    following: dict[int, Call] = {}
    continues: set[int] = set()
    for call in calls:
        before = _predecessor(call, by_number)
        if before is not None and starters[before.number] == 1:
            following[before.number] = call
            continues.add(call.number)
    found = []
    for call in calls:
        if call.number in continues:
            continue
        chain = [call]
        while (after := following.get(chain[-1].number)) is not None:
            chain.append(after)
        found.append(tuple(chain))
    return found


def _predecessor(call: Call, by_number: dict[int, Call]) -> Call | None:
    plan = call.plan
    links = call.links
    if (
        plan.directions != 1
        or plan.packed
        or len(links) != (len(call.hx) - call.loose) * plan.layers
    ):
        return None
    numbers = {link.call for link in links.values()}
    before = by_number.get(numbers.pop()) if len(numbers) == 1 else None
    if before is None or not _same_layer(before, call):
        return None
    for (part, index), link in links.items():
        from_output = link.slot == OUTPUT and part == 0 and plan.layers == 1
        if (
            not (link.straight or link.carried is not None)
            or link.index != index
            or not (from_output or link.slot == 1 + part)
        ):
            return None
    return before if _for_the_same_sequences(call) else None


def _for_the_same_sequences(call: Call) -> bool:
    """Whether all parts of the state were carried on for the same sequences, while the others were reset."""
    told = [link.carried for link in call.links.values()]
    masks = [carried for carried in told if carried is not None]
    if len(masks) < len(told):
        return all(bool(carried.all()) for carried in masks)
    return all(torch.equal(masks[0], carried) for carried in masks)


def _same_layer(one: Call, other: Call) -> bool:
    a, b = one.plan, other.plan
    alike = (
        one.owner == other.owner
        and not a.packed
        and (a.cell, a.layers, a.directions, a.one_step)
        == (b.cell, b.layers, b.directions, b.one_step)
        and one.dtype == other.dtype
        and all(p.shape == q.shape for p, q in zip(one.hx, other.hx, strict=True))
    )
    return alike and all(
        p.keys() == q.keys()
        and all(p[k][0].name == q[k][0].name and same_values(p[k][1], q[k][1]) for k in p)
        for p, q in zip(one.weights, other.weights, strict=True)
    )
