"""One training of an experiment: a program fitted on the CPU or a GPU, recorded by the callback."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

import rnndiag
from lightning_modules.data import TaskData
from lightning_modules.program import Program


@dataclass(frozen=True)
class Fitted:
    """A trained program and its recorded run."""

    program: Program
    data: TaskData
    run: rnndiag.Run

    @property
    def loss(self) -> float:
        """On held-out data."""
        return self.program.results["loss"]

    @property
    def learnt(self) -> bool:
        """Whether the task's solved loss is reached."""
        return self.loss <= self.program.task.solved


def build(model: Mapping[str, Any], data: Mapping[str, Any], seed: int) -> tuple[Program, TaskData]:
    """Program and data from a seed."""
    L.seed_everything(seed, verbose=False)
    return Program(**model), TaskData(model["task"], seed=seed, **data)


def fit(
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    directory: Path,
    clip: float | None = 1.0,
    every_n_steps: int = 50,
    seed: int = 0,
) -> Fitted:
    """Train for one epoch; record lags and contributions every so many steps."""
    program, batches = build(model, data, seed)
    diagnostics = rnndiag.GradientDiagnostics(
        directory,
        every_n_steps=every_n_steps,
        measures=["contributions", "lags"],
        samples=None,
        screen=False,
        report=False,
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"{directory.name}: ", end="", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=1,
            gradient_clip_val=clip,
            callbacks=[diagnostics],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(program, batches)
    return Fitted(program, batches, rnndiag.open_run(diagnostics.run_dir))
