"""Gradients of a chain's parameters as flat buffers (groups of sequences, P): one buffer, in-place sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import flat_step
from rnndiag.engine.truncation.chain import Chain, Visit
from rnndiag.engine.truncation.where import take

ALL = "all"
"""The key under which all parameters together are reported."""


@dataclass(frozen=True)
class Slot:
    """Where one parameter lives in a flat buffer."""

    name: str
    link: int
    key: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """The parameters of a chain, side by side."""

    slots: tuple[Slot, ...]

    @property
    def P(self) -> int:
        """Number of parameters."""
        return self.slots[-1].stop

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters: the weight key, in a stack with the layer's name before it."""
        return tuple(slot.name for slot in self.slots)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """(..., P) -> parameter -> (..., *shape)."""
        lead = flat.shape[:-1]
        return {s.name: flat[..., s.start : s.stop].reshape(*lead, *s.shape) for s in self.slots}

    def sums(self, terms: Tensor) -> dict[str, Tensor]:
        """(..., P) -> parameter -> sum over its entries, and over all."""
        found = {s.name: terms[..., s.start : s.stop].sum(-1) for s in self.slots}
        return {**found, ALL: torch.stack(list(found.values())).sum(0)}


def layout_of(chain: Chain) -> Layout:
    """The parameters of a chain: every floating-point weight of its layers."""
    slots, start = [], 0
    for number, link in enumerate(chain.links):
        for key, weight in link.run.weights.items():
            if not weight.is_floating_point():
                continue
            name = f"{link.run.name}.{key}" if chain.is_stack else key
            stop = start + weight.numel()
            slots.append(Slot(name, number, key, tuple(weight.shape), start, stop))
            start = stop
    return Layout(tuple(slots))


def empty_buffer(chain: Chain, layout: Layout, groups: int) -> Tensor:
    """Zeros (groups, P)."""
    return chain.direct[0].new_zeros(groups, layout.P)


def _factors(visit: Visit, key: str) -> tuple[Tensor, Tensor | None] | None:
    """The rank-one form of a weight's gradient, Σ left right^T or Σ left; None for a weight of any other kind."""
    run = visit.link.run
    if visit.a_ih is None or visit.a_hh is None:
        return None
    if key == "weight_ih":
        return visit.a_ih, take(run.inputs, visit.where)
    if key == "weight_hh":
        return visit.a_hh, take(visit.link.previous[0], visit.where)
    if key == "bias_ih":
        return visit.a_ih, None
    if key == "bias_hh":
        return visit.a_hh, None
    if key == "weight_hr" and visit.projected is not None:
        return visit.cotangent[0], visit.projected
    return None


def add_gradients(
    buffer: Tensor,
    layout: Layout,
    visits: Sequence[Visit],
    scale: Tensor | None = None,
    sign: float = 1.0,
) -> None:
    """buffer (groups, P) += sign * Σ over rows of scale (K, N) * the gradient that the visits hold.

    The N columns are shared out evenly: column n belongs to group n // (N / groups).
    """
    groups = buffer.shape[0]
    for slot in layout.slots:
        found = _factors(visits[slot.link], slot.key)
        if found is None:
            continue
        left, right = found
        if scale is not None:
            weight = scale.to(left.dtype)[..., None]
            left, right = (left * weight, None) if right is None else (left, right * weight)
        view = buffer[:, slot.start : slot.stop]
        if right is None:
            view.add_(_column_sums(left, groups), alpha=sign)
            continue
        view = view.view(groups, *slot.shape)
        if groups == 1:
            view[0].addmm_(left.flatten(0, 1).T, right.flatten(0, 1), alpha=sign)
        else:
            view.baddbmm_(_by_group(left, groups).mT, _by_group(right, groups), alpha=sign)
    for number, visit in enumerate(visits):
        _add_loose(buffer, layout, number, visit, scale, sign)


def _column_sums(rows: Tensor, groups: int) -> Tensor:
    """(K, N, m) -> (groups, m), by a matrix product with ones: sums over a leading axis are slow."""
    ones = rows.new_ones(1, rows.shape[0])
    by_column: Tensor = ones @ rows.flatten(1)
    return by_column.view(groups, -1, rows.shape[-1]).sum(1)


def _by_group(rows: Tensor, groups: int) -> Tensor:
    """(K, N, m) -> (groups, K * N / groups, m)."""
    if rows.shape[1] == groups:
        return rows.transpose(0, 1)
    wide = rows.reshape(rows.shape[0], groups, -1, rows.shape[-1])
    return wide.transpose(0, 1).flatten(1, 2)


def _add_loose(
    buffer: Tensor,
    layout: Layout,
    number: int,
    visit: Visit,
    scale: Tensor | None,
    sign: float,
) -> None:
    """Weights that enter in any other way (peepholes, a module's own): one VJP a group."""
    slots = [s for s in layout.slots if s.link == number and _factors(visit, s.key) is None]
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
            buffer[group, slot.start : slot.stop].add_(grad.flatten(), alpha=sign)


def _weight_vjp(
    run: LayerRun,
    keys: list[str],
    inputs: Tensor,
    before: tuple[Tensor, ...],
    cotangent: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
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
