"""Cuts a batch in time: tensors, padded sequences with their lengths, and packed sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnndiag.errors import BadArgument, NotSupported
from rnndiag.train.nested import batch_dim_of, map_leaves, map_tensors

LENGTHS = "lengths"
"""Name of the batch entry with the number of steps of every sequence, (B,)."""


class TimeBatch:
    """A batch that can be cut in time.

    A tensor whose dimension `time_dim` has T entries is cut; T is that of the first tensor that has this dimension.
    An entry `lengths` (B,) of a dict, named tuple or dataclass becomes the number of steps within the piece, 0 for a
    sequence that has ended. A PackedSequence gives a PackedSequence of the sequences that continue, in its sorted
    order; the other tensors of such a batch and the state follow that order. Anything else stays whole.
    """

    def __init__(self, batch: Any, time_dim: int = 1) -> None:
        self.batch, self.time_dim = batch, time_dim
        self._packed = _first(batch, lambda one: isinstance(one, PackedSequence))
        if self._packed is not None:
            self.T, self.B = len(self._packed.batch_sizes), int(self._packed.batch_sizes[0])
            return
        found = _first(batch, lambda one: isinstance(one, Tensor) and one.dim() > time_dim)
        if found is None:
            raise BadArgument(
                f"No tensor of the batch has a dimension {time_dim} of time.",
                "Give time_dim=0 for (T, B, ...), or 1 for (B, T, ...).",
            )
        self.T = int(found.shape[time_dim])
        self.B = int(found.shape[1 - time_dim]) if found.dim() > 1 else 1

    def piece(self, start: int, stop: int) -> Any:
        """Steps start .. stop-1, with the structure of the batch."""
        return map_leaves(lambda name, value: self._cut(name, value, start, stop), self.batch)

    def rows(self, start: int, stop: int, rows: Tensor) -> Any:
        """Steps start .. stop-1 of some sequences."""
        if self._packed is not None:
            raise NotSupported(
                "A packed batch cannot be looked at sequence by sequence.",
                "Give a padded batch with its lengths.",
            )

        def pick(name: str, value: Any) -> Any:
            if isinstance(value, Tensor):
                dim = 1 - self.time_dim if value.dim() > 1 else 0
                if value.dim() and value.shape[dim] == self.B:
                    return value.index_select(dim, rows.to(value.device))
            return value

        return map_leaves(pick, self.piece(start, stop))

    def __eq__(self, other: object) -> bool:
        """Whether both contain equal tensors."""
        if not isinstance(other, TimeBatch):
            return NotImplemented
        mine, theirs = _leaves(self.batch), _leaves(other.batch)
        return len(mine) == len(theirs) and all(
            a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
            for a, b in zip(mine, theirs, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def alive(self, start: int) -> int | None:
        """Number of packed sequences with a step `start`; None if nothing is packed."""
        return None if self._packed is None else int(self._packed.batch_sizes[start])

    def sort(self, state: Any) -> Any:
        """Reorder a state from the order of the batch to that of packing."""
        return self._permuted(state, "sorted_indices")

    def unsort(self, state: Any) -> Any:
        """Inverse of `sort`."""
        return self._permuted(state, "unsorted_indices")

    def _permuted(self, state: Any, order: str) -> Any:
        index = None if self._packed is None else getattr(self._packed, order)
        if index is None:
            return state
        return map_tensors(
            lambda part: part.index_select(batch_dim_of(part, len(index)), index), state
        )

    def _cut(self, name: str, value: Any, start: int, stop: int) -> Any:
        if isinstance(value, PackedSequence):
            sizes = value.batch_sizes
            before, inside = int(sizes[:start].sum()), int(sizes[start:stop].sum())
            return PackedSequence(value.data[before : before + inside], sizes[start:stop])
        if not isinstance(value, Tensor):
            return value
        if self._packed is not None:
            order, rows = self._packed.sorted_indices, self.alive(start)
            if value.dim() and len(value) == int(self._packed.batch_sizes[0]):
                value = value if order is None else value[order]
                value = value[:rows]
        if name == LENGTHS and value.dim() == 1:
            return (value - start).clamp(0, stop - start)
        if value.dim() > self.time_dim and value.shape[self.time_dim] == self.T:
            return value.narrow(self.time_dim, start, stop - start)
        return value


def _first(tree: Any, holds: Callable[[Any], bool]) -> Any:
    """The first leaf for which `holds` returns True, or None."""
    found: list[Any] = []

    def collect(name: str, leaf: Any) -> Any:
        if name != LENGTHS and holds(leaf):
            found.append(leaf)
        return leaf

    map_leaves(collect, tree)
    return found[0] if found else None


def _leaves(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def collect(name: str, leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            found.append(leaf.data)
        elif isinstance(leaf, Tensor):
            found.append(leaf)
        return leaf

    map_leaves(collect, tree)
    return found
