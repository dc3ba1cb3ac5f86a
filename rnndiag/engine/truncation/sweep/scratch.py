"""Memory that is used again from one lag to the next, and from the cache: fresh pages cost as much as arithmetic."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from rnndiag.engine.cpu_buffers import empty


class Scratch:
    """Memory that visits reuse: what a visit holds is overwritten by the next one, what it carried by the one after."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, str], Tensor] = {}
        self.turn = 0
        """0 or 1: by turns, so that the cotangent that comes in is not overwritten by what goes out."""

    def room(self, number: int, name: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Memory of this shape, kept from the first visit on; it may shrink along its first axis."""
        held = self._held.get((number, name))
        if held is None or held.shape[0] < shape[0] or held.shape[1:] != shape[1:]:
            held = self._held[number, name] = empty(shape, like.dtype, like.device)
        return held[: shape[0]]


CACHED_ROWS = 1024
"""On a CPU about this many rows a thread are taken at a time: what their gates get stays in the cache."""


def rows_at_once(device: torch.device, columns: int) -> int:
    """How many rows of so many columns are worth taking at a time; there are no more on a GPU than all."""
    if device.type != "cpu":
        return sys.maxsize
    return max(1, CACHED_ROWS * torch.get_num_threads() // max(1, columns))
