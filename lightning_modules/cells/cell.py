"""What the programs know of a cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.recurrence.kernel import Kernel
from lightning_modules.recurrence.recurrence import Recurrence
from lightning_modules.recurrence.stepped import StepModule, Stepped
from lightning_modules.registry import Registry


@dataclass(frozen=True)
class CellEntry:
    """One cell: give `kernel` (a class of torch) or `step` (a class of step modules)."""

    summary: str
    gates: tuple[str, ...]
    """Blocks of rows of W_ih, in order."""
    parts: tuple[str, ...] = ("h",)
    kernel: Callable[..., nn.RNNBase] | None = None
    step: Callable[[int, int], StepModule] | None = None
    keeps: tuple[str, float] | None = None
    """The gate that keeps the state, and the sign of a bias that opens it; None: no gate does."""
    initialisation: Mapping[str, Any] = field(default_factory=dict)
    """What this cell starts from where the program says nothing else."""

    def layer(self, inputs: int, hidden: int) -> Recurrence:
        """One layer of this cell in one direction."""
        if self.kernel is not None:
            return Kernel(self.kernel, self.parts, inputs, hidden)
        if self.step is None:
            raise ValueError("a cell needs `kernel` or `step`")
        return Stepped(self.step(inputs, hidden))


CELLS: Registry[CellEntry] = Registry("cell", "lightning_modules.cells")


class GatedStep(StepModule):
    """A step whose pre-activations come from W_ih x + b_ih and W_hh h + b_hh; rows in blocks, one a gate."""

    def __init__(
        self, inputs: int, hidden: int, gates: int, recurrent_gates: int | None = None
    ) -> None:
        super().__init__()
        blocks = gates if recurrent_gates is None else recurrent_gates
        self.sizes = (hidden,) * len(self.parts)
        self.weight_ih = nn.Parameter(torch.empty(gates * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(blocks * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(gates * hidden))
        self.bias_hh = nn.Parameter(torch.empty(blocks * hidden))
        self.add_weights(hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def add_weights(self, hidden: int) -> None:
        """Parameters beyond the four."""

    def pre_activations(self, inputs: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """(a_ih, a_hh)."""
        linear = nn.functional.linear
        return (
            linear(inputs, self.weight_ih, self.bias_ih),
            linear(h, self.weight_hh, self.bias_hh),
        )
