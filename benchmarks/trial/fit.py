"""Trains a program with the callback at its defaults and keeps the run, so that rules can change without training."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch

import rnndiag
from benchmarks.trial.program import BATCHES, Net, Program, loader_of
from rnndiag import GradientDiagnostics
from rnndiag.health.diagnosis import Diagnosis

CAUSES_ONLY = ("contributions", "lags", "gates", "swing")
"""Groups that a rule reads; the others are left out of the trial to save time."""


@dataclass(frozen=True)
class Fitted:
    """One trained program."""

    program: Program
    run_dir: Path
    first_loss: float
    last_loss: float
    """Median loss of the last tenth of the steps; infinite where it is not finite."""
    seconds: float


def fitted(program: Program, folder: Path) -> Fitted:
    """The program's fit: from the folder if it is there, else trained now."""
    place = _place(program, folder)
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be training it for another case
        facts = place / "trial.json"
        if not facts.is_file():
            shutil.rmtree(place / "run", ignore_errors=True)
            first, last, seconds = train(program, place / "run", CAUSES_ONLY)
            told = {"program": asdict(program), "first": first, "last": last, "seconds": seconds}
            facts.write_text(json.dumps(told))
    known = json.loads(facts.read_text())
    return Fitted(program, place / "run", known["first"], known["last"], known["seconds"])


def is_fitted(program: Program, folder: Path) -> bool:
    """Whether the folder holds its fit."""
    return (_place(program, folder) / "trial.json").is_file()


def _place(program: Program, folder: Path) -> Path:
    content = json.dumps(asdict(program), sort_keys=True)
    return folder / hashlib.sha1(content.encode()).hexdigest()[:16]


def train(
    program: Program, run_dir: Path, measures: Sequence[str] | None = None
) -> tuple[float, float, float]:
    """Train a program with the callback: loss of the first batch, of the last tenth, and CPU seconds of the fit."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.manual_seed(program.seed)
    torch.set_num_threads(1)
    net = Net(program)
    callback = GradientDiagnostics(
        run_dir,
        measures=measures,
        screen=False,
        report=False,
        needs=program.needs,
        chance=program.chance,
    )
    losses = _Losses()
    trainer = L.Trainer(
        max_steps=program.fit_steps,
        callbacks=[callback, losses],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=program.clip,
        accumulate_grad_batches=program.accumulate,
        precision=program.precision,
        num_sanity_val_steps=0,
    )
    batches = min(BATCHES, program.fit_steps)
    validation = loader_of(program.but(nan_at=None), 4, 999) if program.validate else None
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(net, loader_of(program, batches, 1000 + program.seed), validation)
    tail = np.array(losses.found[-max(10, len(losses.found) // 10) :])
    last = float(np.median(tail)) if np.isfinite(tail).all() else math.inf
    return losses.found[0], last, time.process_time() - started


class _Losses(L.Callback):
    """The loss of every batch."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        """Keep the loss."""
        self.found.append(float(outputs["loss"]))


def diagnosis_of(one: Fitted) -> Diagnosis:
    """The diagnosis of its run."""
    return rnndiag.diagnose(rnndiag.open_run(one.run_dir))
