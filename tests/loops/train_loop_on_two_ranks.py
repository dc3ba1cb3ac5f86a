"""A program: trains a loop of cells on two gloo processes with and without the callback. Argument: a directory."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import fits
import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from loops.test_loops_in_fits import FreeRunningLSTM
from torch.utils.data import DataLoader, TensorDataset

import rnndiag


class Keep(Callback):
    """Rank 0 writes the trained weights down."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if trainer.global_rank == 0:
            torch.save([value.detach() for value in module.parameters()], self.path)


def train(path: Path, callbacks: list[Any]) -> None:
    L.seed_everything(3, verbose=False)
    options: dict[str, Any] = {**fits.QUIET, "devices": 2, "strategy": "ddp_fork", "max_steps": 2}
    data = TensorDataset(torch.randn(16, 6, 3), torch.randn(16, 6, 1))
    trainer = L.Trainer(**options, callbacks=[*callbacks, Keep(path)])
    trainer.fit(FreeRunningLSTM(), DataLoader(data, batch_size=4))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    where = Path(sys.argv[1])
    callback = rnndiag.GradientDiagnostics(
        where / "run",
        every_n_steps=1,
        strict=True,
        report=False,
        measures=("lags", "contributions"),
    )
    train(where / "with.pt", [callback])
    train(where / "without.pt", [])
