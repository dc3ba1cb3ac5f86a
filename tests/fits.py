"""Tiny Lightning fits: the same training with and without a callback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

STEPS, LENGTH, BATCH, INPUTS, HIDDEN = 4, 7, 4, 3, 5

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "accelerator": "cpu",
    "devices": 1,
}


class Net(L.LightningModule):
    """A recurrent layer and a head; the loss is at every step."""

    def __init__(self, cell: str = "LSTM", **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, cell)(INPUTS, HIDDEN, batch_first=True, **options)
        self.head = nn.Linear(HIDDEN * (2 if options.get("bidirectional") else 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = (self(x) - y).square().mean()
        self.log("loss", loss)
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


class Validated(Net):
    """With a validation loss."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", (self(x) - y).square().mean())


def loader(
    batches: int = STEPS,
    length: int = LENGTH,
    dtype: torch.dtype = torch.float32,
    shuffle: bool = True,
) -> Any:
    """So many batches of fixed data, shuffled by the global random stream."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(batches * BATCH, length, INPUTS, generator=draw).to(dtype)
    y = torch.randn(batches * BATCH, length, 1, generator=draw).to(dtype)
    return DataLoader(TensorDataset(x, y), BATCH, shuffle=shuffle)


def fit(
    make: Callable[[], L.LightningModule],
    callbacks: Sequence[Any] = (),
    steps: int = STEPS,
    data: Any = None,
    ckpt_path: str | None = None,
    **options: Any,
) -> L.LightningModule:
    """Train a fresh module from a fixed seed."""
    L.seed_everything(7, verbose=False)
    module = make()
    trainer = L.Trainer(**{**QUIET, "max_steps": steps, **options}, callbacks=list(callbacks))
    trainer.fit(module, loader() if data is None else data, ckpt_path=ckpt_path)
    return module


def state(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Bit for bit, and with the same random stream afterwards."""
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), f"{name} differs"
