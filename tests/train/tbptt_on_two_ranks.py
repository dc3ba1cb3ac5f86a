"""A program: truncated BPTT by the mixin on two gloo processes. Argument: file for the weights."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rnndiag import train

B, T, K = 4, 12, 4


class Net(train.TruncatedBPTT, L.LightningModule):  # type: ignore[misc]
    """A GRU that carries its state."""

    def __init__(self) -> None:
        super().__init__(k1=K, stateful=True)
        self.rnn = nn.GRU(2, 5, batch_first=True)

    def tbptt_step(self, chunk: Any, state: Any) -> Any:
        out, state = self.rnn(chunk[0], state)
        return out.square().mean(), state

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.5)


def data() -> TensorDataset:
    return TensorDataset(torch.randn(4 * B, T, 2, generator=torch.Generator().manual_seed(3)))


def main(path: str) -> None:
    torch.manual_seed(0)
    net = Net()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=2,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[_Keep(path)],
    )
    trainer.fit(net, DataLoader(data(), batch_size=B))


class _Keep(L.Callback):
    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if trainer.global_rank == 0:
            torch.save((module.state_dict(), trainer.global_step), self.path)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1])
