"""Variational dropout: each unit is dropped or kept for the whole sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.regularisation.regularisation import (
    REGULARISATIONS,
    Regularisation,
    probability,
)


class SequenceDropout(nn.Module):
    """(T, B, F) times one mask (1, B, F): drawn once per sequence and forward pass, the same at every step."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = probability(p)

    def forward(self, sequence: Tensor) -> Tensor:
        """The masked sequence while training, the sequence itself otherwise."""
        if not self.training or self.p == 0.0:
            return sequence
        keep = 1.0 - self.p
        mask = torch.empty_like(sequence[:1]).bernoulli_(keep) / keep
        return sequence * mask


class Variational(Regularisation):
    """One mask per sequence on the input of every layer and on the output of the last."""

    def __init__(self, p: float = 0.3) -> None:
        self.between = lambda: SequenceDropout(p)


REGULARISATIONS.add("variational", Variational)
