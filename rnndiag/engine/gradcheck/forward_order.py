"""Finding the order of gates in which a kernel's outputs would equal those of its reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import torch
from torch import Tensor

from rnndiag.engine.gradcheck.gradients import Point
from rnndiag.engine.gradcheck.hints import BLOCKS, CLOSE
from rnndiag.engine.gradcheck.nested import Tensors
from rnndiag.engine.gradcheck.parameters import cast, held_in
from rnndiag.engine.gradcheck.setup import Setup


def forward_order(setup: Setup) -> str:
    """Words on the order of blocks (gates) that explains wrong outputs, "" where none does.

    Tried on one step: the reference with the blocks of all stacked parameters, or of the inputs' last dimension, in
    another order.
    """
    if setup.reference is None:
        return ""
    point = setup.cut(1)
    with torch.no_grad():
        outputs, _ = setup.kernel(
            *(tuple(t.clone() for t in p) for p in (point.inputs, point.state))
        )
    others = (setup.reference.counterparts or {}).values()
    stacked = max((p.shape[0] for p in others if p.ndim), default=0)
    parameters = [p for p in others if p.ndim and p.shape[0] == stacked]
    for blocks, order in _orders():
        if (
            stacked
            and stacked % blocks == 0
            and _agrees(setup, point, outputs, parameters, blocks, order)
        ):
            return (
                f"it agrees with the {blocks} blocks (gates) of the parameters in the order {order}"
            )
        moved = tuple(_reordered(x, blocks, order, x.ndim - 1) for x in point.inputs)
        if any(x is not y for x, y in zip(moved, point.inputs, strict=True)) and _agrees(
            setup, replace(point, inputs=moved), outputs, [], blocks, order
        ):
            return f"it agrees with the {blocks} blocks (gates) of the inputs in the order {order}"
    return ""


def _orders() -> Iterator[tuple[int, tuple[int, ...]]]:
    for blocks in BLOCKS:
        yield from (
            (blocks, order)
            for order in permutations(range(blocks))
            if order != tuple(range(blocks))
        )


def _reordered(tensor: Tensor, blocks: int, order: tuple[int, ...], dim: int) -> Tensor:
    if tensor.shape[dim] % blocks:
        return tensor
    parts = tensor.chunk(blocks, dim)
    return torch.cat([parts[k] for k in order], dim)


def _agrees(
    setup: Setup,
    point: Point,
    outputs: Tensors,
    parameters: list[Tensor],
    blocks: int,
    order: tuple[int, ...],
) -> bool:
    """Whether the reference gives the kernel's outputs with these parameters reordered."""
    reference = setup.reference
    assert reference is not None
    before = [p.data for p in parameters]
    try:
        for p in parameters:
            p.data = _reordered(p.data, blocks, order, 0)
        with held_in(reference.tensors, reference.dtype), torch.no_grad():
            theirs, _ = reference.function(
                cast(point.inputs, reference.dtype), cast(point.state, reference.dtype)
            )
    finally:
        for p, data in zip(parameters, before, strict=True):
            p.data = data
    pairs = zip(outputs, theirs, strict=True)
    return all(float((a.double() - b.double()).norm()) <= CLOSE * float(b.norm()) for a, b in pairs)
