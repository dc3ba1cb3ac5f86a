"""Parameter gradients from the factors of a step back: matrix products, added in place to flat buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.contributions import FACTORS
from rnndiag.engine.cpu_buffers import Scratch
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import flat_step, pulled_back
from rnndiag.engine.truncation.chains.chain import Chain, ChainLink
from rnndiag.engine.truncation.sweep.parameter_layout import (
    ParameterBlock,
    ParameterLayout,
)
from rnndiag.engine.truncation.sweep.row_steps import take
from rnndiag.engine.truncation.sweep.step_back import StepBack


def empty_buffer(chain: Chain, layout: ParameterLayout, groups: int) -> Tensor:
    """Zeros (groups, P)."""
    return chain.direct[0].new_zeros(groups, layout.P)


@dataclass(frozen=True)
class RightFactors:
    """The right factors of every block, (T, B, columns), which are the same for all lags."""

    layout: ParameterLayout
    by_block: tuple[Tensor | None, ...]


def right_factors(chain: Chain, layout: ParameterLayout) -> RightFactors:
    """Right factors of all blocks; None for W_hr, whose factor comes with each step back."""
    return RightFactors(
        layout, tuple(_right(chain.links[b.link], layout, b) for b in layout.blocks)
    )


def _right(link: ChainLink, layout: ParameterLayout, block: ParameterBlock) -> Tensor | None:
    slots = sorted((s for s in layout.slots if s.block is block), key=lambda s: s.columns)
    parts: dict[int, Tensor] = {}
    for slot in slots:
        kind = FACTORS[slot.key][1]
        if kind == "projected":
            return None
        if kind == "one":
            like = link.previous[0]
            value = like.new_full((*like.shape[:2], 1), slot.factor)
        else:
            value = link.run.inputs if kind == "inputs" else link.previous[0]
        parts[slot.columns[0]] = value
    return torch.cat(list(parts.values()), -1)


def add_gradients(
    buffer: Tensor,
    rights: RightFactors,
    steps: Sequence[StepBack],
    scale: Tensor | None = None,
    *,
    fresh: bool = False,
    scratch: Scratch | None = None,
) -> None:
    """buffer += Σ over rows of scale * gradient.

    Args:
        buffer: (groups, P). The N columns are divided evenly: column n belongs to group n // (N / groups).
        rights: Right factors of the chain.
        steps: Left factors, by layer.
        scale: (K, N), a weight for every row.
        fresh: Overwrite the buffer.
        scratch: Buffers to reuse.
    """
    groups = buffer.shape[0]
    for number, (block, given) in enumerate(
        zip(rights.layout.blocks, rights.by_block, strict=True)
    ):
        step = steps[block.link]
        left = left_factor(step, block.left)
        right = step.projected if given is None else take(given, step.where)
        assert right is not None
        if scale is not None:
            wide = scale.to(right.dtype)[..., None]
            out = None
            if scratch is not None:
                out = scratch.buffer((number, "right"), right, tuple(right.shape))
            right = torch.mul(right, wide, out=out)
        view = buffer[:, block.start : block.stop].view(groups, block.columns, block.rows)
        _add_products(view, left, right, fresh)
    for number, step in enumerate(steps):
        _add_by_vjp(buffer, rights.layout, number, step, scale, fresh)


def _add_products(view: Tensor, left: Tensor, right: Tensor, fresh: bool) -> None:
    """view (groups, columns, rows) += Σ right left^T by group of sequences, left and right (K, N, ...)."""
    groups, beta = view.shape[0], 0 if fresh else 1
    if groups == 1:
        view[0].addmm_(right.flatten(0, 1).T, left.flatten(0, 1), beta=beta)
        return
    each = left.shape[1] // groups
    for k in range(each):  # the k-th sequence of every group at once, so that nothing is copied
        own_left, own_right = (part[:, k::each].transpose(0, 1) for part in (left, right))
        view.baddbmm_(own_right.mT, own_left, beta=1 if k else beta)


def left_factor(step: StepBack, name: str) -> Tensor:
    """The left factor of a block of parameters, (K, N, rows)."""
    found = {"a_ih": step.a_ih, "a_hh": step.a_hh, "h_adjoint": step.cotangent[0]}[name]
    assert found is not None
    return found


def _add_by_vjp(
    buffer: Tensor,
    layout: ParameterLayout,
    number: int,
    step: StepBack,
    scale: Tensor | None,
    fresh: bool,
) -> None:
    """Weights without a matrix product form (peepholes, a module's own): one VJP per group."""
    slots = [s for s in layout.slots if s.link == number and s.block is None]
    if not slots:
        return
    run, groups = step.link.run, buffer.shape[0]
    cotangent = step.cotangent
    if scale is not None:
        cotangent = tuple(part * scale.to(part.dtype)[..., None] for part in cotangent)
    inputs = take(run.inputs, step.where)
    before = tuple(take(part, step.where) for part in step.link.previous)
    width = inputs.shape[1] // groups
    for group in range(groups):
        columns = slice(group * width, (group + 1) * width)
        grads = _weight_vjp(
            run,
            [s.key for s in slots],
            inputs[:, columns],
            tuple(part[:, columns] for part in before),
            tuple(part[:, columns] for part in cotangent),
        )
        for slot, grad in zip(slots, grads, strict=True):
            place = buffer[group, slot.stretch]
            place.copy_(grad.flatten()) if fresh else place.add_(grad.flatten())


def _weight_vjp(
    run: LayerRun, keys: list[str], inputs: Tensor, before: State, cotangent: State
) -> State:
    """Gradients of the weights `keys` from one step with this cotangent of the new state."""
    with torch.enable_grad():
        leaves = tuple(run.weights[key].detach().requires_grad_() for key in keys)
        weights = {**run.weights, **dict(zip(keys, leaves, strict=True))}
        out = flat_step(run.cell, weights, inputs.detach(), before)
        return pulled_back(out, cotangent, leaves)
