"""Ordinary dropout between layers: a fresh mask at every time step (nn.LSTM's own `dropout`)."""

from __future__ import annotations

from lightning_modules.regularisation.regularisation import (
    REGULARISATIONS,
    Regularisation,
    probability,
)


class LayerDropout(Regularisation):
    """Units of each layer but the top one are dropped with probability p."""

    def __init__(self, p: float = 0.3) -> None:
        self.layer_dropout = probability(p)


REGULARISATIONS.add("layer_dropout", LayerDropout)
