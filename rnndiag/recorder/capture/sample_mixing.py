"""Whether the loss of a backward pass is a sum over the samples of the batch.

Noise and systematic bias take the gradients of single sequences for independent draws. Where the loss mixes samples
(batch normalisation in a head, a contrastive loss, the root of a mean), what it sends to one sample's outputs depends
on the outputs of others. That dependence is the second derivative of the loss between two samples: the gradient at the
outputs is taken as a graph and pulled back with a random cotangent on half of the samples; it arrives at the other half
if they are mixed. The halves are those of the binary digits of the samples' numbers, so that any two samples are apart
in one of them. A cheaper look comes first, which mostly shows that nothing is mixed: every sample's cotangent is
multiplied by another power of two, which must come out again as an exact factor of what arrives at that sample. Only
the part of the graph between the loss and the nearest recurrent outputs is looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from rnndiag.engine.segments.marks import LEAF, Edge, edge_of, sequence_number
from rnndiag.recorder.capture.call import OUTPUT, Call
from rnndiag.recorder.capture.node_calls import leading, pull_back
from rnndiag.recorder.capture.node_tags import MARK

MOST_NODES = 20_000
"""Most operations between the loss and the recurrent outputs."""
MOST_BYTES = 64 * 2**20
"""Most bytes of the gradients of these operations: they are all kept until the second derivative."""
ROUNDING = 1e-12
"""Relative to the largest entry that arrives; for a sum over samples the others get exact zeros in all usual
operations."""
SEED = 21
POWERS = 32
"""Number of different powers of two by which samples are multiplied at once; the largest, 2^31, fits into float32."""
RANDOM = 4093
"""Length of the repeated random cotangent: a prime, so that its numbers meet different entries in every sample and
step."""


@dataclass(frozen=True)
class Samples:
    """Whether the loss is a sum over the samples of one backward pass."""

    independent: bool = True
    said: str = ""
    """Why it is not, or why that is unknown."""


_MIXED = Samples(
    False,
    "the loss mixes the samples of the batch, so the gradients of single sequences are no independent draws: no noise, "
    "no systematic bias",
)
_ASKED = Samples(False, "the samples of the batch are not independent, as `independent=False` says")


def _unknown(why: str) -> Samples:
    return Samples(
        said=f"whether the loss mixes the samples of the batch is not known ({why}): it was taken for a sum over them. "
        "Say independent=True or independent=False"
    )


def samples_of(
    calls: Sequence[Call],
    roots: Sequence[Any],
    given: Sequence[Tensor | None],
    independent: bool | None = None,
) -> Samples:
    """Whether the differentiated loss is a sum over the samples of the recorded calls.

    Args:
        calls: Those that the graph may go through.
        roots: What is differentiated, with the graph behind it whole.
        given: The gradient of each root; None: 1.
        independent: What a person said of it; None: look.
    """
    if independent is not None:
        return Samples() if independent else _ASKED
    outputs = _Outputs({call.number: call for call in calls if not call.refusal})
    edges = [edge_of(root) for root in roots]
    nodes, ends = outputs.nearest(edges)
    axes = outputs.axes(ends)
    if not axes or next(iter(axes.values())).samples < 2:
        return Samples()
    if any(isinstance(root, Tensor) and root.numel() > 1 for root in roots):
        return _unknown("the backward pass starts from given gradients")
    if len(nodes) > MOST_NODES:
        return _unknown(f"it takes more than {MOST_NODES} operations")
    starts = {
        edge: torch.ones_like(root) if value is None else value
        for edge, root, value in zip(edges, roots, given, strict=True)
        if isinstance(root, Tensor) and edge not in ends
    }
    if _bytes_of(leading(starts, ends.keys(), nodes)) > MOST_BYTES:
        return _unknown(f"to look takes more than {MOST_BYTES >> 20} MB")
    with torch.enable_grad():
        first = pull_back(starts, ends.keys(), nodes)
    if first is None:
        return _unknown("it goes through an operation in Python, or one that cannot be asked")
    curved = {e: value for e, value in first.items() if e in axes and value.grad_fn is not None}
    return _second_derivative(curved, ends.keys(), axes)


@torch.no_grad()
def _second_derivative(
    gradients: Mapping[Edge, Tensor], ends: AbstractSet[Edge], axes: Mapping[Edge, _Axis]
) -> Samples:
    """Whether the gradients at some samples' outputs depend on the outputs of others."""
    oldest = min(sequence_number(node) for node, _ in ends)
    starts = {edge: (value.grad_fn, value.output_nr) for edge, value in gradients.items()}
    nodes = _behind(starts.values(), ends, oldest)
    draw = torch.Generator().manual_seed(SEED)
    random = {e: torch.randn(RANDOM, generator=draw).to(value) for e, value in gradients.items()}

    def pulled(weights: Tensor) -> dict[Edge, Tensor] | None:
        """What arrives at the outputs for the random cotangent with every sample multiplied by its weight."""
        cotangents: dict[Edge, Tensor] = {}
        for edge, few in random.items():
            # repeated anew for each pull: to keep it would add one more tensor of this size to the peak
            start, part = starts[edge], _repeated(few, gradients[edge])
            part *= axes[edge].factors(weights, part)
            # two outputs may get one and the same gradient
            cotangents[start] = cotangents[start] + part if start in cotangents else part
        arrived = pull_back(cotangents, ends, nodes)
        return None if arrived is None else {e: arrived[e] for e in arrived.keys() & axes.keys()}

    samples = torch.arange(next(iter(axes.values())).samples)
    if _is_scaled_exactly(pulled, axes, samples):
        return Samples()
    for digit in range((len(samples) - 1).bit_length()):
        chosen = (samples >> digit) % 2 == 1
        arrived = pulled(chosen.float())
        if arrived is None:
            return _unknown("an operation has no second derivative")
        own = [axes[edge].largest(value, chosen) for edge, value in arrived.items()]
        others = [axes[edge].largest(value, ~chosen) for edge, value in arrived.items()]
        if not all(map(math.isfinite, own + others)):
            return _unknown("its second derivative is not finite")
        if max(others, default=0.0) > ROUNDING * max(own + others, default=0.0):
            return _MIXED
    return Samples()


def _is_scaled_exactly(
    pulled: Callable[[Tensor], dict[Edge, Tensor] | None],
    axes: Mapping[Edge, _Axis],
    samples: Tensor,
) -> bool:
    """Whether powers of two, another one for every sample, multiply exactly what arrives at that sample.

    They do if the samples do not mix: a power of two is not rounded. Two pulls show it for POWERS samples, where the
    binary digits take five. False proves nothing: samples mix, or numbers left the range of their precision.
    """
    plain = pulled(torch.ones(len(samples)))
    rest = samples
    while plain is not None and bool(rest.any()):
        weights = torch.exp2(rest % POWERS)
        rest = rest // POWERS
        found = pulled(weights)
        if found is None or found.keys() != plain.keys():
            return False
        for edge, value in found.items():
            expected = plain[edge] * axes[edge].factors(weights, value)
            if not (torch.equal(value, expected) and bool(value.sum().isfinite())):
                return False
    return plain is not None


def _behind(starts: Iterable[Edge], ends: AbstractSet[Edge], oldest: int) -> set[Any]:
    """The nodes between starts and ends, and side branches whose nodes are not older than the oldest end."""
    nodes: set[Any] = set()
    waiting = [node for node, _ in starts]
    while waiting and len(nodes) <= MOST_NODES:
        node = waiting.pop()
        if node is None or node in nodes or not oldest <= sequence_number(node) < LEAF:
            continue
        nodes.add(node)
        waiting.extend(edge[0] for edge in node.next_functions if edge not in ends)
    return nodes


def _bytes_of(nodes: Sequence[Any]) -> int:
    """Bytes that the gradients of the nodes take."""
    return sum(
        prod(one.shape) * one.dtype.itemsize
        for node in nodes
        for one in getattr(node, "_input_metadata", ())
    )


@dataclass(frozen=True)
class _Axis:
    """The sample axis of one output."""

    dim: int
    samples: int
    rows: Tensor | None = None
    """(entries,) sample of each entry along the axis; None: entry k is sample k."""

    def factors(self, weights: Tensor, like: Tensor) -> Tensor:
        """The weights (samples,) in a shape that multiplies every sample of a tensor like `like` by its own."""
        return self._of(weights).to(like).view(-1, *[1] * (like.dim() - 1 - self.dim))

    def largest(self, value: Tensor, chosen: Tensor) -> float:
        """Absolute value of the largest entry of the chosen samples; NaN if one is NaN."""
        rows = self._of(chosen).nonzero().flatten().to(value.device)
        own = value.index_select(self.dim, rows)
        low, high = own.aminmax() if own.numel() else (torch.zeros(()), torch.zeros(()))
        return float(torch.maximum(-low, high))

    def _of(self, by_sample: Tensor) -> Tensor:
        return by_sample if self.rows is None else by_sample[self.rows]


def _repeated(few: Tensor, like: Tensor) -> Tensor:
    """A few random numbers repeated over all entries: drawing one per entry would cost more than the derivative."""
    return few.repeat(-(-like.numel() // RANDOM))[: like.numel()].view(like.shape)


@dataclass(frozen=True)
class _Outputs:
    """The outputs of the recorded calls in the graph."""

    calls: Mapping[int, Call]

    def nearest(self, edges: Sequence[Edge]) -> tuple[set[Any], dict[Edge, tuple[Call, int]]]:
        """The nodes from the roots to the nearest outputs, and these outputs: edge -> (call, slot)."""
        nodes: set[Any] = set()
        ends: dict[Edge, tuple[Call, int]] = {}
        waiting = list(edges)
        while waiting and len(nodes) <= MOST_NODES:
            node, number = waiting.pop()
            if node is None:
                continue
            known = node.metadata.get(MARK, {}).get(number)
            if known is not None and known[0] in self.calls:
                ends[node, number] = self.calls[known[0]], known[1]
                continue
            if node in nodes or sequence_number(node) >= LEAF:
                continue
            nodes.add(node)
            waiting.extend(node.next_functions)
        return nodes, ends

    def axes(self, ends: Mapping[Edge, tuple[Call, int]]) -> dict[Edge, _Axis]:
        """Sample axis of each output whose batch size is the most frequent one."""
        found = {edge: _axis(call, slot) for edge, (call, slot) in ends.items()}
        sizes = Counter(axis.samples for axis in found.values())
        usual = max(sizes, key=lambda size: (sizes[size], size), default=0)
        return {edge: axis for edge, axis in found.items() if axis.samples == usual}


def _axis(call: Call, slot: int) -> _Axis:
    plan = call.plan
    if plan.one_step:
        return _Axis(0, len(call.outputs[slot]))
    if slot != OUTPUT:
        return _Axis(1, call.outputs[slot].shape[1])
    if plan.batch_sizes is not None:
        sizes = plan.batch_sizes.tolist()
        return _Axis(0, sizes[0], torch.cat([torch.arange(size) for size in sizes]))
    dim = 0 if plan.batch_first else 1
    return _Axis(dim, call.outputs[slot].shape[dim])
