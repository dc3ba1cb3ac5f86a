"""Gradients of a chain's parameters as flat buffers (groups of sequences, P): one buffer, in-place sums.

Weights whose gradients share a left factor lie side by side in one block, W_hh | W_ih | bias: one matrix product gives
them all. Two biases that have the same gradient share a column, scaled so that inner products of buffers are those of
the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import flat_step
from rnndiag.engine.truncation.chain import Chain, Link
from rnndiag.engine.truncation.visit import Visit
from rnndiag.engine.truncation.where import take

ALL = "all"
"""The key under which all parameters together are reported."""


@dataclass(frozen=True)
class Block:
    """A matrix of gradients with one left factor: rows x columns of a flat buffer."""

    link: int
    left: str
    """Which adjoint is its left factor: a_ih, a_hh, or the state's cotangent (W_hr)."""
    rows: int
    columns: int
    start: int

    @property
    def stop(self) -> int:
        """One past its last place."""
        return self.start + self.rows * self.columns


@dataclass(frozen=True)
class Slot:
    """Where one parameter lives in a flat buffer: columns first..last of a block, or a stretch of its own."""

    name: str
    link: int
    key: str
    shape: tuple[int, ...]
    start: int
    stop: int
    block: Block | None = None
    columns: tuple[int, int] = (0, 0)
    factor: float = 1.0
    """What the buffer holds over what the parameter's gradient is."""

    def of(self, flat: Tensor) -> Tensor:
        """(..., P) -> what the buffer holds of this parameter, (..., *shape)."""
        part = flat[..., self.start : self.stop]
        if self.block is not None:
            part = part.unflatten(-1, (self.block.rows, self.block.columns))[
                ..., slice(*self.columns)
            ]
        return part.reshape(*flat.shape[:-1], *self.shape)


@dataclass(frozen=True)
class Layout:
    """The parameters of a chain, side by side."""

    slots: tuple[Slot, ...]
    blocks: tuple[Block, ...]

    @property
    def P(self) -> int:
        """Length of a flat buffer."""
        return max(slot.stop for slot in self.slots)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters: the weight key, in a stack with the layer's name before it."""
        return tuple(slot.name for slot in self.slots)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """(..., P) -> parameter -> (..., *shape)."""
        return {slot.name: slot.of(flat) / slot.factor for slot in self.slots}

    def sums(self, terms: Tensor) -> dict[str, Tensor]:
        """(..., P), products of two buffers -> parameter -> inner product, and over all."""
        found = {}
        for slot in self.slots:
            part = slot.of(terms)
            found[slot.name] = part.flatten(terms.dim() - 1).sum(-1) / slot.factor**2
        return {**found, ALL: terms.sum(-1)}


_FACTORS = {
    "weight_ih": ("a_ih", "inputs"),
    "weight_hh": ("a_hh", "h"),
    "bias_ih": ("a_ih", "one"),
    "bias_hh": ("a_hh", "one"),
    "weight_hr": ("h_adjoint", "projected"),
}
"""Weight key -> (left factor, right factor) of its gradient Σ left right^T. Any other weight takes a VJP."""


def layout_of(chain: Chain) -> Layout:
    """The parameters of a chain: every floating-point weight of its layers."""
    slots: list[Slot] = []
    blocks: list[Block] = []
    start = 0
    for number, link in enumerate(chain.links):
        prefix = f"{link.run.name}." if chain.is_stack else ""
        for left, keys in _by_left(link).items():
            block, own = _block(number, link, left, keys, start, prefix)
            blocks.append(block)
            slots += own
            start = block.stop
        for key, weight in link.run.weights.items():
            if weight.is_floating_point() and _left_of(link, key) is None:
                stop = start + weight.numel()
                shape = tuple(weight.shape)
                slots.append(Slot(prefix + key, number, key, shape, start, stop))
                start = stop
    order = {
        (number, key): place
        for number, link in enumerate(chain.links)
        for place, key in enumerate(link.run.weights)
    }
    slots.sort(key=lambda slot: (slot.link, order[slot.link, slot.key]))
    return Layout(tuple(slots), tuple(blocks))


def _left_of(link: Link, key: str) -> str | None:
    if link.run.cell.pointwise is None or key not in _FACTORS:
        return None
    left = _FACTORS[key][0]
    return "a_hh" if left == "a_ih" and link.run.cell.additive else left


def _by_left(link: Link) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in link.run.weights:
        left = _left_of(link, key)
        if left is not None:
            found.setdefault(left, []).append(key)
    order = {"weight_hh": 0, "weight_ih": 1}
    return {left: sorted(keys, key=lambda k: order.get(k, 2)) for left, keys in found.items()}


def _block(
    number: int, link: Link, left: str, keys: list[str], start: int, prefix: str
) -> tuple[Block, list[Slot]]:
    weights = link.run.weights
    biases = sum(_FACTORS[key][1] == "one" for key in keys)
    wide = sum(int(weights[key].shape[1]) for key in keys if _FACTORS[key][1] != "one")
    rows = int(weights[keys[0]].shape[0])
    block = Block(number, left, rows, wide + (biases > 0), start)
    slots, column = [], 0
    for key in keys:
        is_bias = _FACTORS[key][1] == "one"
        width = 1 if is_bias else int(weights[key].shape[1])
        place = wide if is_bias else column
        columns = (place, place + width)
        column += 0 if is_bias else width
        shape = tuple(weights[key].shape)
        factor = biases**0.5 if is_bias else 1.0
        slots.append(
            Slot(prefix + key, number, key, shape, start, block.stop, block, columns, factor)
        )
    return block, slots


def empty_buffer(chain: Chain, layout: Layout, groups: int) -> Tensor:
    """Zeros (groups, P)."""
    return chain.direct[0].new_zeros(groups, layout.P)


@dataclass(frozen=True)
class Rights:
    """The right factors of every block, (T, N, columns): they do not depend on the lag."""

    layout: Layout
    by_block: tuple[Tensor | None, ...]


def right_factors(chain: Chain, layout: Layout) -> Rights:
    """Right factors of all blocks; None where they come with each visit (W_hr)."""
    return Rights(layout, tuple(_right(chain.links[b.link], layout, b) for b in layout.blocks))


def _right(link: Link, layout: Layout, block: Block) -> Tensor | None:
    slots = sorted((s for s in layout.slots if s.block is block), key=lambda s: s.columns)
    parts: dict[int, Tensor] = {}
    for slot in slots:
        kind = _FACTORS[slot.key][1]
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
    visits: Sequence[Visit],
    scale: Tensor | None = None,
    sign: float = 1.0,
) -> None:
    """buffer (groups, P) += sign * Σ over rows of scale (K, N) * the gradient that the visits hold.

    The N columns are shared out evenly: column n belongs to group n // (N / groups).
    """
    groups = buffer.shape[0]
    for block, given in zip(rights.layout.blocks, rights.by_block, strict=True):
        visit = visits[block.link]
        left = _left(visit, block.left)
        right = visit.projected if given is None else take(given, visit.where)
        assert right is not None
        if scale is not None:
            right = right * scale.to(right.dtype)[..., None]
        view = buffer[:, block.start : block.stop].view(groups, block.rows, block.columns)
        if groups == 1:
            view[0].addmm_(left.flatten(0, 1).T, right.flatten(0, 1), alpha=sign)
        else:
            view.baddbmm_(_by_group(left, groups).mT, _by_group(right, groups), alpha=sign)
    for number, visit in enumerate(visits):
        _add_loose(buffer, rights.layout, number, visit, scale, sign)


def _left(visit: Visit, name: str) -> Tensor:
    found = {"a_ih": visit.a_ih, "a_hh": visit.a_hh, "h_adjoint": visit.cotangent[0]}[name]
    assert found is not None
    return found


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
            buffer[group, slot.start : slot.stop].add_(grad.flatten(), alpha=sign)


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
