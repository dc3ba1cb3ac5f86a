"""What `rnndiag snapshot snapshot_factory.py:make -o snapshot` freezes: the model, its loss, and one batch."""

from __future__ import annotations

import torch
from torch import Tensor
from train import DELAY, DelayNet, T

Batch = tuple[Tensor, Tensor]


def loss(model: DelayNet, batch: Batch) -> Tensor:
    """The training step's own loss."""
    return model.training_step(batch, 0)


def make() -> tuple[DelayNet, object, Batch]:
    """(model, loss_fn, batch)."""
    torch.manual_seed(0)
    x = torch.randn(4, T, 1)
    return DelayNet(), loss, (x, x.roll(DELAY, 1))
