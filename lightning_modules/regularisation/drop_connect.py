"""Drop-connect on W_hh: single recurrent weights are dropped, the same ones for the whole minibatch and sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_modules.regularisation.regularisation import (
    REGULARISATIONS,
    Regularisation,
    probability,
)


class DroppedWeights(nn.Module):
    """W times a mask that `redraw` draws; W itself outside of training."""

    mask: Tensor

    def __init__(self, weight: Tensor, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("mask", torch.ones_like(weight), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weights."""
        return weight * self.mask if self.training else weight

    def redraw(self) -> None:
        """A new mask, scaled so that the mean stays."""
        keep = 1.0 - self.p
        self.mask = torch.empty_like(self.mask).bernoulli_(keep) / keep


class DropConnect(Regularisation):
    """A mask on every hidden-to-hidden matrix, drawn at the start of each forward pass in training."""

    def __init__(self, p: float = 0.3) -> None:
        self.p = probability(p)

    def on_recurrence(self, recurrence: nn.Module) -> None:
        """Put the masks on, and have them redrawn."""
        masks: list[DroppedWeights] = []
        for module in list(recurrence.modules()):
            for name, weight in list(module.named_parameters(recurse=False)):
                if name.startswith("weight_hh"):
                    masks.append(DroppedWeights(weight.detach(), self.p))
                    parametrize.register_parametrization(module, name, masks[-1])
        recurrence.register_forward_pre_hook(_Redraw(masks))


class _Redraw:
    def __init__(self, masks: list[DroppedWeights]) -> None:
        self.masks = masks

    def __call__(self, module: nn.Module, args: object) -> None:
        if module.training:
            for mask in self.masks:
                mask.redraw()


REGULARISATIONS.add("drop_connect", DropConnect)
