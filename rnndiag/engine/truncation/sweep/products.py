"""Gradients of a chain's parameters from what visits hold: matrix products, summed into flat buffers in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import flat_step
from rnndiag.engine.truncation.chains.chain import Chain, ChainLink
from rnndiag.engine.truncation.sweep.parameter_layout import (
    FACTORS,
    ParameterBlock,
    ParameterLayout,
)
from rnndiag.engine.truncation.sweep.row_steps import take
from rnndiag.engine.truncation.sweep.scratch import Scratch
from rnndiag.engine.truncation.sweep.step_back import StepBack


def empty_buffer(chain: Chain, layout: ParameterLayout, groups: int) -> Tensor:
    """Zeros (groups, P)."""
    return chain.direct[0].new_zeros(groups, layout.P)


@dataclass(frozen=True)
class Rights:
    """The right factors of every block, (T, N, columns): they do not depend on the lag."""

    layout: ParameterLayout
    by_block: tuple[Tensor | None, ...]


def right_factors(chain: Chain, layout: ParameterLayout) -> Rights:
    """Right factors of all blocks; None where they come with each visit (W_hr)."""
    return Rights(layout, tuple(_right(chain.links[b.link], layout, b) for b in layout.blocks))


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
    rights: Rights,
    visits: Sequence[StepBack],
    scale: Tensor | None = None,
    *,
    fresh: bool = False,
    scratch: Scratch | None = None,
) -> None:
    """buffer (groups, P) += Σ over rows of scale (K, N) * the gradient that the visits hold; fresh: =.

    The N columns are shared out evenly: column n belongs to group n // (N / groups).
    """
    groups = buffer.shape[0]
    for number, (block, given) in enumerate(
        zip(rights.layout.blocks, rights.by_block, strict=True)
    ):
        visit = visits[block.link]
        left = left_factor(visit, block.left)
        right = visit.projected if given is None else take(given, visit.where)
        assert right is not None
        if scale is not None:
            wide = scale.to(right.dtype)[..., None]
            room = None if scratch is None else scratch.room(number, "right", right, right.shape)
            right = right * wide if room is None else torch.mul(right, wide, out=room)
        view = buffer[:, block.start : block.stop].view(groups, block.columns, block.rows)
        _add_products(view, left, right, fresh)
    for number, visit in enumerate(visits):
        _add_loose(buffer, rights.layout, number, visit, scale, fresh)


def _add_products(view: Tensor, left: Tensor, right: Tensor, fresh: bool) -> None:
    """view (groups, columns, rows) += Σ right left^T by group of sequences, left and right (K, N, ...)."""
    groups, beta = view.shape[0], 0 if fresh else 1
    if groups == 1:
        view[0].addmm_(right.flatten(0, 1).T, left.flatten(0, 1), beta=beta)
        return
    each = left.shape[1] // groups
    for k in range(each):  # the k-th sequence of every group at once: nothing is copied
        own_left, own_right = (part[:, k::each].transpose(0, 1) for part in (left, right))
        view.baddbmm_(own_right.mT, own_left, beta=1 if k else beta)


def left_factor(visit: StepBack, name: str) -> Tensor:
    """The left factor of a block of parameters, (K, N, rows)."""
    found = {"a_ih": visit.a_ih, "a_hh": visit.a_hh, "h_adjoint": visit.cotangent[0]}[name]
    assert found is not None
    return found


def _add_loose(
    buffer: Tensor,
    layout: ParameterLayout,
    number: int,
    visit: StepBack,
    scale: Tensor | None,
    fresh: bool,
) -> None:
    """Weights that enter in any other way (peepholes, a module's own): one VJP a group."""
    slots = [s for s in layout.slots if s.link == number and s.block is None]
    if not slots:
        return
    run, groups = visit.link.run, buffer.shape[0]
    cotangent = visit.cotangent
    if scale is not None:
        cotangent = tuple(part * scale.to(part.dtype)[..., None] for part in cotangent)
    inputs = take(run.inputs, visit.where)
    before = tuple(take(part, visit.where) for part in visit.link.previous)
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
    with torch.enable_grad():
        leaves = [run.weights[key].detach().requires_grad_() for key in keys]
        weights = {**run.weights, **dict(zip(keys, leaves, strict=True))}
        out = flat_step(run.cell, weights, inputs.detach(), before)
        pairs = [(o, a) for o, a in zip(out, cotangent, strict=True) if o.requires_grad]
        return torch.autograd.grad(
            [o for o, _ in pairs],
            leaves,
            [a for _, a in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
