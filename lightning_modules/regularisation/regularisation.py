"""What a regularisation may do to a recurrence."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lightning_modules.registry import Registry
from rnndiag.errors import BadArgument


class Regularisation:
    """Nothing at all; each kind replaces what it needs."""

    between: Callable[[], nn.Module] | None = None
    """Makes the module through which every layer's input and the last output pass."""
    layer_dropout: float = 0.0
    """Probability of ordinary dropout between layers, drawn afresh at every step."""

    def on_recurrence(self, recurrence: nn.Module) -> None:
        """Change the recurrence once it is built and initialised."""


REGULARISATIONS: Registry[Callable[..., Regularisation]] = Registry(
    "regularisation", "lightning_modules.regularisation"
)


def probability(p: float) -> float:
    """p, if it is one."""
    if not 0.0 <= p < 1.0:
        raise BadArgument(f"A dropout probability of {p} leaves nothing.", "Take 0 <= p < 1.")
    return p
