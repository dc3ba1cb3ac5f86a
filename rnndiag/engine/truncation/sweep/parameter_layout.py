"""Gradients of a chain's parameters as flat buffers (groups of sequences, P): one buffer, in-place sums.

Weights whose gradients share a left factor lie together in one block, W_hh^T over W_ih^T over the bias: one matrix
product gives them all. Two biases that have the same gradient share a column, scaled so that inner products of buffers
are those of the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.contributions import FACTORS
from rnndiag.engine.truncation.chains.chain import Chain, ChainLink

ALL = "all"
"""The key under which all parameters together are reported."""


@dataclass(frozen=True)
class ParameterBlock:
    """Gradients with one left factor as a matrix, rows x columns, stored transposed: columns x rows of a flat
    buffer."""

    link: int
    left: str
    """Name of the adjoint that is its left factor: a_ih, a_hh, or the state's cotangent (W_hr)."""
    rows: int
    columns: int
    start: int

    @property
    def stop(self) -> int:
        """One past its last index."""
        return self.start + self.rows * self.columns


@dataclass(frozen=True)
class Slot:
    """Location of one parameter in a flat buffer: columns first..last of a block, or a stretch of its own."""

    name: str
    link: int
    key: str
    shape: tuple[int, ...]
    start: int
    stop: int
    block: ParameterBlock | None = None
    columns: tuple[int, int] = (0, 0)
    factor: float = 1.0
    """Ratio of the buffer's content to the parameter's gradient."""

    def of(self, flat: Tensor) -> Tensor:
        """(..., P) -> the buffer's content for this parameter, (..., *shape)."""
        part = flat[..., self.stretch]
        if self.block is not None:
            part = part.unflatten(-1, (-1, self.block.rows)).mT
        return part.reshape((*flat.shape[:-1], *self.shape))

    @property
    def stretch(self) -> slice:
        """Its indices in a flat buffer."""
        if self.block is None:
            return slice(self.start, self.stop)
        first, last = (self.start + column * self.block.rows for column in self.columns)
        return slice(first, last)


@dataclass(frozen=True)
class ParameterLayout:
    """The parameters of a chain, side by side."""

    slots: tuple[Slot, ...]
    blocks: tuple[ParameterBlock, ...]

    @property
    def P(self) -> int:
        """Number of entries of all parameters: the length of a flat buffer for them."""
        return max(slot.stop for slot in self.slots)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters: weight keys, in a stack prefixed by the layer's name."""
        return tuple(slot.name for slot in self.slots)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """(..., P) -> parameter -> (..., *shape)."""
        return {slot.name: slot.of(flat) / slot.factor for slot in self.slots}

    def inner(self, x: Tensor, y: Tensor) -> Tensor:
        """Inner products of two buffers (P,) by parameter and, last, over all: (parameters + 1,)."""
        parts = [
            torch.dot(x[slot.stretch], y[slot.stretch]) / slot.factor**2 for slot in self.slots
        ]
        own = torch.stack(parts).double()
        return torch.cat([own, own.sum()[None]])


def layout_of(chain: Chain) -> ParameterLayout:
    """The parameters of a chain: every floating-point weight of its layers."""
    slots: list[Slot] = []
    blocks: list[ParameterBlock] = []
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
    return ParameterLayout(tuple(slots), tuple(blocks))


def _left_of(link: ChainLink, key: str) -> str | None:
    if link.run.cell.pointwise is None or key not in FACTORS:
        return None
    left = FACTORS[key][0]
    return "a_hh" if left == "a_ih" and link.run.cell.additive else left


def _by_left(link: ChainLink) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in link.run.weights:
        left = _left_of(link, key)
        if left is not None:
            found.setdefault(left, []).append(key)
    order = {"weight_hh": 0, "weight_ih": 1}
    return {left: sorted(keys, key=lambda k: order.get(k, 2)) for left, keys in found.items()}


def _block(
    number: int, link: ChainLink, left: str, keys: list[str], start: int, prefix: str
) -> tuple[ParameterBlock, list[Slot]]:
    """The block of the weights that share a left factor, which begins at entry `start`, and the slot of each."""
    weights = link.run.weights
    biases = sum(FACTORS[key][1] == "one" for key in keys)
    wide = sum(int(weights[key].shape[1]) for key in keys if FACTORS[key][1] != "one")
    rows = int(weights[keys[0]].shape[0])
    block = ParameterBlock(number, left, rows, wide + (biases > 0), start)
    slots, column = [], 0
    for key in keys:
        is_bias = FACTORS[key][1] == "one"
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
