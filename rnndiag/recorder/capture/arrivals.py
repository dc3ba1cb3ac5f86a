"""What one call alone sends back into a tensor, without a new node in the graph.

A tensor's own hook sees the sum over all its users. Handing the call an alias would tell its share apart, but where the
call uses the tensor more than once, gradients would then add up in another order, and training would no longer be the
same to the last bit. So the nodes between the call's outputs and the tensor are found, and their results are added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from rnndiag.errors import CaptureFault

LIMIT = 20_000
"""Nodes that one step may have."""

_LEAF = 2**63
"""Sequence numbers from here on are those of leaves."""

Arrived = Callable[[int, Tensor], None]


def watch_arrivals(
    outputs: Iterable[Tensor], targets: Mapping[int, Tensor], arrived: Arrived
) -> None:
    """Call arrived(key, gradient) for each gradient that the nodes behind the outputs send to a target."""
    edges = {}
    for key, tensor in targets.items():
        if tensor.requires_grad:
            edge = get_gradient_edge(tensor)
            edges[edge.node, edge.output_nr] = key
    if not edges:
        return
    ends = {node for node, _ in edges}
    before = [number for node in ends if (number := _number(node)) < _LEAF]
    oldest = min(before, default=-1)
    seen: set[Any] = set()
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in seen or node in ends:
            continue
        seen.add(node)
        if len(seen) > LIMIT:
            raise CaptureFault(
                f"One step of a recurrent cell took more than {LIMIT} operations.",
                "Name the module that does a single step, or leave this one out.",
            )
        reached: dict[int, int] = {}
        for place, (child, number) in enumerate(node.next_functions):
            if child is None:
                continue
            known = edges.get((child, number))
            if known is not None:
                reached[place] = known
            elif oldest < _number(child) < _LEAF:
                waiting.append(child)
        if reached:
            node.register_hook(_passing(reached, arrived))


def _number(node: Any) -> int:
    return int(node._sequence_nr())


def _passing(reached: dict[int, int], arrived: Arrived) -> Callable[[Any, Any], None]:
    def passing(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
        for place, key in reached.items():
            gradient = inputs[place]
            if gradient is not None:
                arrived(key, gradient)

    return passing
