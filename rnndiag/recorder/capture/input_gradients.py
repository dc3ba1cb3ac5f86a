"""The gradient that one call alone sends to a tensor, without adding nodes to the graph.

A tensor's own hook sees the sum over all its users. Giving the call an alias would separate its share, but if the call
uses the tensor more than once, gradients would be added in another order and training would differ in the last bits. So
the nodes between the call's outputs and the tensor are located, and their results are added.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from rnndiag.engine.segments.marks import LEAF, sequence_number
from rnndiag.errors import CaptureFault
from rnndiag.recorder.capture.backward_pass import Hook

LIMIT = 20_000
"""Most nodes that the graph of one step may have."""

Arrived = Callable[[int, Tensor], None]
Edges = dict[tuple[Any, int], int]
Hits = list[tuple[Any, dict[int, int]]]
"""Pairs of a node and {index among its gradients: key of the target}."""


@dataclass(frozen=True)
class Route:
    """The path from an output to a node as edge indices, and {index among the node's gradients: key of the target}."""

    output: int
    places: tuple[int, ...]
    reached: Mapping[int, int]


@dataclass
class InputGradients:
    """Finds those nodes. A kernel's graph is the same at every call, so its routes are searched once and then
    reused."""

    _routes: dict[Hashable, list[Route]] = field(default_factory=dict)

    def watch(
        self,
        outputs: Iterable[Tensor],
        targets: Mapping[int, Tensor],
        arrived: Arrived,
        guard: Callable[[Hook], Hook],
        same: Hashable = None,
    ) -> None:
        """Call arrived(key, gradient) for each gradient that the nodes behind the outputs send to a target.

        guard: wraps hooks called by autograd. same: key shared by identical graphs; None: this graph may be unique.
        """
        edges: Edges = {}
        for key, tensor in targets.items():
            if tensor.requires_grad:
                edge = get_gradient_edge(tensor)
                edges[edge.node, edge.output_nr] = key
        if not edges:
            return
        starts = [output.grad_fn for output in outputs]
        sign = (same, tuple(edges.values()))
        known = None if same is None else self._routes.get(sign)
        hits = None if known is None else _follow(starts, edges, known)
        if hits is None:
            routes = _search(starts, edges)
            if same is not None:
                self._routes[sign] = routes
            hits = _follow(starts, edges, routes) or []
        for node, reached in hits:
            node.register_hook(guard(_passing(reached, arrived)))


def _follow(starts: list[Any], edges: Edges, routes: list[Route]) -> Hits | None:
    """The nodes at the end of the routes; None if a route does not fit this graph."""
    hits: Hits = []
    for route in routes:
        node = starts[route.output]
        for place in route.places:
            children = () if node is None else node.next_functions
            if place >= len(children):
                return None
            node = children[place][0]
        if node is None:
            return None
        children = node.next_functions
        for place, key in route.reached.items():
            if place >= len(children) or edges.get(children[place]) != key:
                return None
        hits.append((node, dict(route.reached)))
    return hits


def _search(starts: list[Any], edges: Edges) -> list[Route]:
    """All nodes between the outputs and the targets that send a gradient to one."""
    ends = {node for node, _ in edges}
    before = [number for node in ends if (number := sequence_number(node)) < LEAF]
    oldest = min(before, default=-1)
    seen: set[Any] = set()
    waiting: list[tuple[Any, int, tuple[int, ...]]] = [
        (node, k, ()) for k, node in enumerate(starts) if node is not None
    ]
    routes = []
    while waiting:
        node, output, places = waiting.pop()
        if node in seen or node in ends:
            continue
        seen.add(node)
        if len(seen) > LIMIT:
            raise CaptureFault(
                f"One step of a recurrent cell took more than {LIMIT} operations.",
                "Name the module that does a single step, or leave this one out.",
            )
        reached: dict[int, int] = {}
        for place, edge in enumerate(node.next_functions):
            if edge[0] is None:
                continue
            known = edges.get(edge)
            if known is not None:
                reached[place] = known
            elif oldest < sequence_number(edge[0]) < LEAF:
                waiting.append((edge[0], output, (*places, place)))
        if reached:
            routes.append(Route(output, places, reached))
    return routes


def _passing(reached: Mapping[int, int], arrived: Arrived) -> Hook:
    def passing(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
        for place, key in reached.items():
            gradient = inputs[place]
            if gradient is not None:
                arrived(key, gradient)

    return passing
