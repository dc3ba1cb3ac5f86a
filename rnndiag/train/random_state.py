"""The state of torch's random generators, for rerunning a stretch with the same draws (dropout masks)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RandomState:
    """The generator states of the CPU and, if the tensors are on a GPU, of that GPU."""

    cpu: Tensor
    gpu: Tensor | None
    device: torch.device

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """The current states."""
        gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), gpu, device)

    def restore(self) -> None:
        """Set the generators to these states."""
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu, self.device)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RandomState):
            return NotImplemented
        same = torch.equal(self.cpu, other.cpu)
        if self.gpu is None or other.gpu is None:
            return same and self.gpu is other.gpu
        return same and torch.equal(self.gpu, other.gpu)

    __hash__ = None  # type: ignore[assignment]
