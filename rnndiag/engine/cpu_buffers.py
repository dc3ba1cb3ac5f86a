"""Large CPU buffers, allocated through numpy and reused: page faults of fresh memory cost more than the arithmetic.

numpy requests huge pages for large arrays, torch by default does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LARGE_BYTES = 4 * 2**20
"""From this size in bytes on, numpy requests huge pages of Linux: one page fault per 2 MiB instead of 512."""

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like `torch.empty`, with large CPU tensors in memory allocated by numpy."""
    small = math.prod(shape) * dtype.itemsize < LARGE_BYTES
    if small or device.type != "cpu" or dtype not in _NUMPY:
        return torch.empty(*shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(shape, _NUMPY[dtype]))


def empty_parts(
    lead: Sequence[int], sizes: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """One empty tensor (*lead, size) for each of `sizes`, all views of one buffer, which each keeps alive."""
    counts = [math.prod(lead) * size for size in sizes]
    pieces = empty([sum(counts)], dtype, device).split(counts)
    return tuple(piece.view(*lead, size) for piece, size in zip(pieces, sizes, strict=True))


class Scratch:
    """Named buffers that are reused by calls of `step_back`: each is overwritten by the next call that requests it."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, str], Tensor] = {}
        self.turn = 0
        """0 or 1, switched at every call, for buffers that must survive the next call."""

    def buffer(self, key: tuple[int, str], like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The buffer of this name; reallocated if a larger first axis or another shape is needed."""
        held = self._buffers.get(key)
        if held is None or held.shape[0] < shape[0] or held.shape[1:] != shape[1:]:
            held = self._buffers[key] = empty(shape, like.dtype, like.device)
        return held[: shape[0]]
