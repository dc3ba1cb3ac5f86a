"""How the weights of a recurrence start: input matrices, recurrent matrices, biases, the bias of the forget gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
    """The forget gate's bias at the start: 1 or more keeps what the cell holds."""

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
    def apply(self, recurrence: nn.Module, gates: tuple[str, ...]) -> None:
        """Set the weights in place. `gates` names the blocks of W_ih's rows."""
        if self.forget_bias is not None and gates and "f" not in gates:
            raise BadArgument(
                f"forget_bias is {self.forget_bias}, but this cell has no forget gate.",
                "Leave forget_bias out, or take a cell with a forget gate: lstm.",
            )
        if not gates:
            if self != Initialisation():
                raise BadArgument(
                    "A wiring with a transition of its own starts from torch's default.",
                    "Leave the initialisation out.",
                )
            return
        for name, weight in recurrence.named_parameters():
            kind = name.rpartition(".")[2]
            if kind.startswith("weight_ih"):
                self._blocks(self.input, weight, len(gates), self.input_gain)
            elif kind.startswith(("weight_hh", "weight_hn")):
                self._blocks(
                    self.hidden, weight, weight.shape[0] // weight.shape[1], self.hidden_gain
                )
            elif kind.startswith("bias"):
                RULES[self.bias](weight, 1.0)
                self._forget(kind, weight, gates)

    def _blocks(self, rule: str, weight: Tensor, count: int, gain: float) -> None:
        for block in weight.chunk(count):
            RULES[rule](block, gain)

    def _forget(self, kind: str, bias: Tensor, gates: tuple[str, ...]) -> None:
        if self.forget_bias is not None:
            block = bias.chunk(len(gates))[gates.index("f")]
            block.fill_(self.forget_bias if kind.startswith("bias_ih") else 0.0)
