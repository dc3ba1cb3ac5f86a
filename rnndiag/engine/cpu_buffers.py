"""Memory for a large result on a CPU: to fill fresh memory costs more in page faults than in arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LARGE_BYTES = 4 * 2**20
"""From this size on numpy asks Linux for huge pages: one fault for 2 MiB, not 512. Torch by default asks for none."""

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.empty`; a large one on the CPU lies in memory that numpy asked for."""
    small = math.prod(shape) * dtype.itemsize < LARGE_BYTES
    if small or device.type != "cpu" or dtype not in _NUMPY:
        return torch.empty(*shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(shape, _NUMPY[dtype]))


def empty_parts(
    lead: Sequence[int], sizes: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """One empty tensor (*lead, size) for each of `sizes`, side by side in one piece of memory: each keeps all alive."""
    counts = [math.prod(lead) * size for size in sizes]
    pieces = empty([sum(counts)], dtype, device).split(counts)
    return tuple(piece.view(*lead, size) for piece, size in zip(pieces, sizes, strict=True))
