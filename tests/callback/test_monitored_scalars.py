"""Scalars of recordings can be monitored: callback metrics, EarlyStopping, ModelCheckpoint, the progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
from fits import QUIET, Net, assert_same, fit, loader
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

import rnndiag

KEYS = ["rnndiag/rnn.l0/reach", "rnndiag/rnn.l1/reach"]


def two_layers() -> Net:
    return Net(num_layers=2)


def train(path: Path, others: list[Any], **options: Any) -> L.Trainer:
    callback = rnndiag.GradientDiagnostics(
        path, every_n_steps=1, strict=True, screen=False, report=False
    )
    L.seed_everything(7, verbose=False)
    trainer = L.Trainer(**{**QUIET, "max_epochs": 3, **options}, callbacks=[*others, callback])
    trainer.fit(two_layers(), loader())
    return trainer


def test_callback_metrics_hold_every_layer_of_the_last_epoch(tmp_path: Path) -> None:
    trainer = train(tmp_path / "run", [])
    run = rnndiag.open_run(tmp_path / "run")
    steps = run.steps[-4:]  # the last epoch's
    for layer in ("rnn.l0", "rnn.l1"):
        profiles = run.select("credit_profile", layer, steps=steps.tolist())
        known = [rnndiag.reach(row) for row in profiles.sel(profile_stat="profile").values]
        found = float(trainer.callback_metrics[f"rnndiag/{layer}/reach"])
        assert found == pytest.approx(sum(map(float, known)) / len(known), rel=1e-5)
    assert "rnndiag/rnn.l0/residual" in trainer.callback_metrics


@pytest.mark.parametrize("place", ["before", "after"])
def test_early_stopping_can_watch_a_reach(tmp_path: Path, place: str) -> None:
    stop = EarlyStopping(KEYS[0], stopping_threshold=0.0, mode="max", check_on_train_epoch_end=True)
    trainer = train(tmp_path / "run", [stop] if place == "before" else [])
    if place == "after":
        callback = rnndiag.GradientDiagnostics(
            tmp_path / "two", every_n_steps=1, strict=True, screen=False
        )
        L.seed_everything(7, verbose=False)
        trainer = L.Trainer(**{**QUIET, "max_epochs": 3}, callbacks=[callback, stop])
        trainer.fit(two_layers(), loader())
    assert trainer.current_epoch == 1  # the threshold is passed at once


def test_a_checkpoint_can_be_kept_by_reach(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "kept", monitor=KEYS[1], mode="max")
    train(tmp_path / "run", [keep], enable_checkpointing=True)
    assert keep.best_model_score is not None
    assert Path(keep.best_model_path).is_file()


def test_the_progress_bar_shows_the_shortest_reach(tmp_path: Path) -> None:
    shown: list[set[str]] = []

    class Look(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            shown.append(set(trainer.progress_bar_metrics))

    train(tmp_path / "run", [Look()])
    assert all(
        any(name.startswith("rnndiag/") and "reach" in name for name in names) for names in shown
    )


def test_nothing_is_logged_where_that_was_asked(tmp_path: Path) -> None:
    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run", every_n_steps=1, strict=True, screen=False, log="none"
    )
    trainer = L.Trainer(**{**QUIET, "max_steps": 2}, callbacks=[callback])
    trainer.fit(two_layers(), loader())
    assert not [name for name in trainer.callback_metrics if "rnndiag" in name]


def test_monitoring_leaves_training_as_it_was(tmp_path: Path) -> None:
    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run", every_n_steps=1, strict=True, screen=False
    )
    assert_same(fit(two_layers), fit(two_layers, [callback]))
