"""A training program small enough for CI: an LSTM repeats its input of ten steps ago. `python train.py OUT --seed 0`"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rnndiag

T, DELAY = 40, 10


class DelayNet(L.LightningModule):
    """One LSTM and a head."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)
        with torch.no_grad():
            self.rnn.bias_ih_l0[hidden : 2 * hidden] = 1.0

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Mean square of the steps that have something to repeat."""
        x, y = batch
        return nn.functional.mse_loss(self.head(self.rnn(x)[0])[:, DELAY:], y[:, DELAY:])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 3e-3)


def main() -> None:
    """Train one seed, recorded into OUT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    L.seed_everything(args.seed)
    x = torch.randn(256, T, 1)
    trainer = L.Trainer(
        max_steps=150,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            rnndiag.GradientDiagnostics(
                args.out, every_n_steps=5, measures=["contributions", "lags", "gates"]
            )
        ],
    )
    trainer.fit(DelayNet(), DataLoader(TensorDataset(x, x.roll(DELAY, 1)), 32, shuffle=True))


if __name__ == "__main__":
    main()
