"""The report reaches the real TensorBoard, W&B and MLflow loggers, offline, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
from fits import QUIET, Net, loader
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from sample_run import Write, writes_below

import rnndiag
from rnndiag.recorder.output.hand_over import hand_over
from rnndiag.report.page import write_page
from rnndiag.report.write_report import report_context

# deprecations inside of the loggers' own packages
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writes_below(tmp_path)


def give(write: Write, logger: Any) -> tuple[Path, list[str]]:
    """Write a run's page and hand it over."""
    run = write()
    context = report_context(run)
    page = write_page(context, run / "report.html")
    return page, hand_over(page, context, [logger])


def test_tensorboard_gets_every_figure_at_the_last_step(write: Write, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path / "tb", name="", version="")
    _, took = give(write, logger)
    logger.finalize("success")
    assert took == ["TensorBoardLogger"]
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    tags = events.Tags()["images"]
    assert "rnndiag/Reach" in tags
    assert len(tags) > 2
    assert events.Images("rnndiag/Reach")[0].step == 90


def test_wandb_gets_the_page_offline(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    page, took = give(write, logger)
    logger.experiment.finish()
    assert took == ["WandbLogger"]
    kept = [file.read_text(encoding="utf-8") for file in (tmp_path / "wandb").rglob("*.html")]
    assert page.read_text(encoding="utf-8") in kept


def test_mlflow_gets_the_page_as_an_artifact(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path / 'ml'}", experiment_name="e")
    page, took = give(write, logger)
    assert took == ["MLFlowLogger"]
    (kept,) = (tmp_path / "ml").rglob("report.html")
    assert kept.read_bytes() == page.read_bytes()


def test_a_logger_derived_from_a_known_one_is_known_and_others_get_nothing(
    write: Write, tmp_path: Path
) -> None:
    class Mine(TensorBoardLogger):
        """One of a person's own."""

    assert give(write, Mine(tmp_path / "tb"))[1] == ["TensorBoardLogger"]
    run = report_context(tmp_path / "run")
    assert hand_over(tmp_path / "run" / "report.html", run, [CSVLogger(tmp_path)]) == []


def test_a_logger_that_fails_does_not_fail_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardLogger(tmp_path / "tb")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(type(logger.experiment), "add_figure", full)
    callback = rnndiag.GradientDiagnostics(tmp_path / "run", every_n_steps=1, screen=False)
    trainer = L.Trainer(**{**QUIET, "max_steps": 2, "logger": logger}, callbacks=[callback])
    with pytest.warns(
        UserWarning, match="giving the report to a logger failed: OSError: disk full"
    ):
        trainer.fit(Net(), loader())
    assert (tmp_path / "run" / "report.html").is_file()
