"""Memory for a large result on a CPU: filling it for the first time costs more in page faults than in arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LARGE_BYTES = 4 * 2**20
"""From this size on numpy asks Linux for huge pages (one fault for 2 MiB, not 512); torch asks for none by default."""

ALIGNMENT = 64
"""Bytes: torch's own, one cache line and the widest vector store."""


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.empty`, in memory of numpy's where that is on the CPU and large."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE_BYTES:
        return torch.empty(*shape, dtype=dtype, device=device)
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return torch.from_numpy(room[start : start + size]).view(dtype).view(*shape)
