"""The fourth proof, closure: every path from a later loss to an earlier state goes through the states in between.

Without closure, passes from mark to mark are not time steps: a skip connection over three steps arrives three steps
earlier after one pass, so windows cannot be computed from what arrives. The proof walks over the graph between the
marks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor

from rnndiag.engine.segments.marks import LEAF, Edge, Mark, sequence_number


@dataclass(frozen=True)
class Closure:
    """Result of a walk over the graph between marks."""

    open: str = ""
    """The path that bypasses the state; empty: there is none."""
    within: bool = False
    """Whether some marks of a step lead to others of the same step, as in a stack of cells."""
    takes_from: frozenset[int] = frozenset()
    """Other loops that the marks depend on, as indices into `others`."""
    leaves: tuple[Tensor, ...] = ()
    """The leaf tensors that the steps of the loop use directly, each once, in the order found."""
    leaves_of_later: frozenset[int] = frozenset()
    """ids of the leaves that the marks of later steps depend on directly."""
    leaves_of_loss: frozenset[int] = frozenset()
    """ids of the leaves that the loss depends on before any mark."""
    leaves_around: Mapping[int, str] = field(default_factory=dict)
    """id of a leaf -> how a step depends on an earlier step's use of it by a path that avoids the states."""


def marks_behind(
    starts: Iterable[Edge],
    stops: Mapping[Edge, int],
    oldest: int,
    passed: set[Edge] | None = None,
) -> tuple[set[int], list[Any]]:
    """The first marks on every path back from some edges, and the leaf nodes reached before any mark.

    stops: edge -> key of the mark there. oldest: nodes made before this sequence number lead to no mark. passed: set to
    which the edges on the way are added.
    """
    marks: set[int] = set()
    leaves: dict[Any, None] = {}
    seen: set[Any] = set()
    waiting = list(starts)
    while waiting:
        edge = waiting.pop()
        node = edge[0]
        if node is None:
            continue
        key = stops.get(edge)
        if key is not None:
            marks.add(key)
            continue
        if passed is not None:
            passed.add(edge)
        if node in seen:
            continue
        seen.add(node)
        number = sequence_number(node)
        if number >= LEAF:
            leaves[node] = None
        elif number >= oldest:
            waiting.extend(node.next_functions)
    return marks, list(leaves)


def stops_of(marks: Sequence[Mark]) -> dict[Edge, int]:
    """Edge -> key of the mark there."""
    return {mark.place: key for key, mark in enumerate(marks)}


def closure_of(
    marks: Sequence[Mark], roots: Sequence[Edge], others: Sequence[AbstractSet[Edge]] = ()
) -> Closure:
    """Walk over the graph from every mark, and from the loss, to the next marks.

    Args:
        marks: The marks of one loop.
        roots: What the user differentiates.
        others: The marks of other loops, each. Where this loop takes nothing from one of them, what the loss reads
            through its states counts as read by a layer above.
    """
    if not marks:
        return Closure()
    oldest = min(mark.number for mark in marks)
    stops = stops_of(marks)
    within = False
    leaves: dict[int, Tensor] = {}
    of_later: set[int] = set()
    passed: set[Edge] = set()
    jump = ""
    first_time = min(mark.time for mark in marks)
    begins = _begins(marks)
    # results of the first step may be kept for all later ones, such as a projection of the inputs
    kept_until = begins[min(first_time + 1, len(begins) - 1)]
    around: dict[int, str] = {}
    keys_of: dict[Any, list[int]] = {}
    for key, mark in enumerate(marks):
        keys_of.setdefault(mark.edge.node, []).append(key)
    for node, keys in keys_of.items():
        time = marks[keys[0]].time
        own: set[Edge] = set()
        found, met = marks_behind(node.next_functions, stops, oldest, own)
        passed |= own
        if time > first_time:
            # nodes made before the previous step began, and reached from here without passing a state
            for leaf_id in _direct_leaves(own, kept_until, begins[time - 1]):
                around.setdefault(leaf_id, _AROUND.format(time))
        for key in found:
            distance = time - marks[key].time
            within |= distance == 0
            if distance not in (0, 1) and not jump:
                jump = _JUMP.format(time, marks[key].time, distance)
        for leaf in met:
            leaves[id(leaf.variable)] = leaf.variable
            if time != first_time:
                of_later.add(id(leaf.variable))
    if not leaves:
        # weights or gates that were computed before the first step: their parameters lie further back
        starts = [edge for node in keys_of for edge in node.next_functions]
        leaves = {id(leaf.variable): leaf.variable for leaf in marks_behind(starts, stops, 0)[1]}
    above = {edge for own in others if not own & passed for edge in own}
    read, of_loss = _readout(marks, roots, stops, above, oldest)
    return Closure(
        jump or read,
        within,
        frozenset(k for k, own in enumerate(others) if own & passed),
        tuple(leaves.values()),
        *(frozenset(of_later), frozenset(of_loss)),
        around,
    )


def _direct_leaves(edges: Iterable[Edge], after: int, before: int) -> Iterator[int]:
    """ids of the leaves that nodes made between two sequence numbers take directly."""
    for node, _ in edges:
        if after < sequence_number(node) < before:
            for child, _ in node.next_functions:
                if child is not None and sequence_number(child) >= LEAF:
                    yield id(child.variable)


_JUMP = "the state of step {} depends on that of step {} by a way that goes through no state in between ({} steps)"
_AROUND = (
    "step {} uses a value that an earlier step made from the same parameters, and that is no marked state (a memory "
    "kept in an attribute, say)"
)
_READ = "step {} uses a value of step {} that is no marked state"


def _begins(marks: Sequence[Mark], by_next: bool = False) -> list[int]:
    """Sequence number of each step's first mark; for a step without one, that of the previous step, or of the next
    one."""
    first: dict[int, int] = {}
    for mark in marks:
        first[mark.time] = min(mark.number, first.get(mark.time, LEAF))
    begins: list[int] = []
    times = range(max(first) + 1)
    for time in reversed(times) if by_next else times:
        begins.append(first.get(time, begins[-1] if begins else 0))
    return begins[::-1] if by_next else begins


def leaves_of_first_step(marks: Sequence[Mark]) -> frozenset[int]:
    """ids of the leaves that the marks of the first step depend on, however far back."""
    time = min(mark.time for mark in marks)
    starts = [edge for m in marks if m.time == time for edge in m.edge.node.next_functions]
    return frozenset(id(leaf.variable) for leaf in marks_behind(starts, {}, 0)[1])


def _readout(
    marks: Sequence[Mark],
    roots: Sequence[Edge],
    stops: Mapping[Edge, int],
    others: AbstractSet[Edge],
    oldest: int,
) -> tuple[str, set[int]]:
    """How the loss of one step reads values of an earlier step (empty: it does not), and the leaves that it reads.

    Running sums of losses are allowed.

    After the last step everything may be read, as the outputs of a layer are: the loss then enters where it reads.
    """
    begins, last = _begins(marks, by_next=True), max(mark.time for mark in marks)

    def step_of(node: Any) -> int:
        return bisect_right(begins, sequence_number(node)) - 1

    nodes, leaves = _between(roots, stops, others, oldest)
    consumers: dict[Any, list[Any]] = {}
    for node in nodes:
        for child, _ in node.next_functions:
            consumers.setdefault(child, []).append(node)

    def is_pooled(node: Any, child: Any) -> bool:
        """Whether a node adds to a sum over steps that nothing reads before the last step: each step enters where
        it is added."""
        after = consumers.get(node, [])
        adds = node.name().startswith("Add") and len(consumers[child]) == 1 == len(after)
        return adds and all(
            (one.name().startswith("Add") and step_of(one) > step_of(node)) or step_of(one) >= last
            for one in after
        )

    leads: dict[Any, bool] = {}
    for node in sorted(nodes, key=sequence_number):
        step, reads = step_of(node), False
        for child, number in node.next_functions:
            if child is None or (child, number) in others:
                continue
            key = stops.get((child, number))
            if key is None and not leads.get(child, False):
                continue
            reads = True
            earlier = step_of(child) if key is None else marks[key].time
            if earlier < step < last and (
                key is not None
                or not (_is_running_sum(node, child, number) or is_pooled(node, child))
            ):
                return _READ.format(step, earlier), leaves
        leads[node] = reads
    return "", leaves


def _between(
    roots: Sequence[Edge], stops: Mapping[Edge, int], others: AbstractSet[Edge], oldest: int
) -> tuple[set[Any], set[int]]:
    """The graph nodes between the roots and the first marks of any loop, and the ids of the leaves met."""
    nodes: set[Any] = set()
    leaves: set[int] = set()
    waiting = list(roots)
    while waiting:
        edge = waiting.pop()
        node = edge[0]
        if node is None or node in nodes or edge in stops or edge in others:
            continue
        if sequence_number(node) >= LEAF:
            leaves.add(id(node.variable))
        elif sequence_number(node) >= oldest:
            nodes.add(node)
            waiting.extend(node.next_functions)
    return nodes, leaves


def _is_running_sum(node: Any, child: Any, number: int) -> bool:
    """Whether an edge accumulates losses: numbers, or one number per sample added to others."""
    if not hasattr(child, "_input_metadata"):
        return bool(node.name().startswith("Add"))
    shape = tuple(child._input_metadata[number].shape)
    return prod(shape) == 1 or (len(shape) == 1 and node.name().startswith("Add"))
