"""How the weights of a recurrence start: input matrices, recurrent matrices, biases, the bias of the forget gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.cells.cell import CellEntry
from rnndiag.errors import BadArgument


def _identity(block: Tensor, gain: float) -> None:
    nn.init.eye_(block).mul_(gain)


def _normal(block: Tensor, gain: float) -> None:
    nn.init.normal_(block, std=gain / block.shape[-1] ** 0.5)


RULES: dict[str, Callable[[Tensor, float], Any]] = {
    "default": lambda block, gain: None,
    "identity": _identity,
    "orthogonal": lambda block, gain: nn.init.orthogonal_(block, gain),
    "xavier": lambda block, gain: nn.init.xavier_uniform_(block, gain),
    "normal": _normal,
    "zero": lambda block, gain: nn.init.zeros_(block),
}
"""Rule -> what it does to one gate's block (H, columns), in place."""


@dataclass(frozen=True)
class Initialisation:
    """Rules by kind of weight; `default` leaves torch's uniform start."""

    input: str = "default"
    hidden: str = "default"
    bias: str = "default"
    input_gain: float = 1.0
    hidden_gain: float = 1.0
    forget_bias: float | None = None
    """Bias at the start of the gate that keeps the state, f of an LSTM or z of a GRU: 1 or more holds on to it."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Initialisation:
        """From a configuration's dict."""
        known = list(cls.__dataclass_fields__)
        for option, value in options.items():
            if option not in known:
                raise BadArgument(
                    f"The initialisation has no option {option!r}.",
                    f"Its options are: {', '.join(known)}.",
                )
            if isinstance(value, str) and value not in RULES:
                raise BadArgument(
                    f"There is no initialisation called {value!r}.",
                    f"Known are: {', '.join(RULES)}.",
                )
        return cls(**options)

    @torch.no_grad()
    def apply(self, recurrence: nn.Module, cell: CellEntry | None) -> None:
        """Set the weights in place."""
        if cell is None:
            if self != Initialisation():
                raise BadArgument(
                    "A wiring with a transition of its own starts from torch's default.",
                    "Leave the initialisation out.",
                )
            return
        if self.forget_bias is not None and cell.keeps is None:
            raise BadArgument(
                f"forget_bias is {self.forget_bias}, but this cell has no gate that keeps its state.",
                "Leave forget_bias out, or take a cell with such a gate: lstm or gru.",
            )
        parameters = dict(recurrence.named_parameters())
        for name, weight in parameters.items():
            kind = name.rpartition(".")[2]
            if kind.startswith("weight_ih"):
                self._blocks(self.input, weight, len(cell.gates), self.input_gain)
            elif kind.startswith(("weight_hh", "weight_hn")):
                count = weight.shape[0] // weight.shape[1]
                self._blocks(self.hidden, weight, count, self.hidden_gain)
            elif kind.startswith("bias"):
                RULES[self.bias](weight, 1.0)
                matrix = parameters[name.replace(kind[:7], "weight_hh")]
                self._keep(weight, matrix.shape[1], cell, first=kind.startswith("bias_ih"))

    def _blocks(self, rule: str, weight: Tensor, count: int, gain: float) -> None:
        for block in weight.chunk(count):
            RULES[rule](block, gain)

    def _keep(self, bias: Tensor, hidden: int, cell: CellEntry, first: bool) -> None:
        """The whole of it in the first of the two biases, nothing in the second."""
        if self.forget_bias is not None and cell.keeps is not None:
            gate, sign = cell.keeps
            block = bias.split(hidden)[cell.gates.index(gate)]
            block.fill_(sign * self.forget_bias if first else 0.0)
