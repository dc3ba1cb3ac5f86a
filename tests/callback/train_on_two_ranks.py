"""A program: trains on two processes with and without the callback. Arguments: run directory, file for the weights."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import fits
import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback

import rnndiag


class Keep(Callback):
    """Rank 0 writes the trained weights down."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if trainer.global_rank == 0:
            torch.save(module.state_dict(), self.path)


def train(path: str, callbacks: list[Any]) -> None:
    L.seed_everything(3, verbose=False)
    options: dict[str, Any] = {**fits.QUIET, "devices": 2, "strategy": "ddp_fork", "max_epochs": 2}
    trainer = L.Trainer(**options, callbacks=[*callbacks, Keep(path)])
    trainer.fit(fits.Net("GRU"), fits.loader(8))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    run_dir, weights, schedule = sys.argv[1:]
    chosen: dict[str, Any] = {"every_n_steps": 2} if schedule == "steps" else {"budget": 0.5}
    callback = rnndiag.GradientDiagnostics(run_dir, strict=True, report=False, **chosen)
    train(f"{weights}.with", [callback])
    train(f"{weights}.without", [])
