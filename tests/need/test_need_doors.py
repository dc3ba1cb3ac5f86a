"""The ways to a need of memory besides the function: the callback, the command, the figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from need.shift_register import ShiftRegister, copy_batches, cross_entropy
from need.test_need_verdict import FAR, QUIET
from torch import Tensor
from torch.utils.data import DataLoader

import rnndiag
from rnndiag.cli import main
from rnndiag.report.context import Context
from rnndiag.report.figures import FIGURES
from rnndiag.stats.need import Group, needs_in
from rnndiag.stats.need.stored import need_measurements
from rnndiag.store.reader import StoredRun
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter


class Copying(LightningModule):
    """A net that never learns: it holds 3 inputs, and the task asks for the one 6 steps back."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ShiftRegister(3)

    def training_step(self, batch: Any, _index: int) -> Tensor:
        loss = cross_entropy(self.net, batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, _index: int) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def loader(count: int) -> DataLoader[Any]:
    return DataLoader(copy_batches(6, count), batch_size=None)


def test_callback_measures_the_need_of_the_fit_and_stores_it(tmp_path: Path) -> None:
    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run",
        every_n_steps=1,
        measures=["contributions"],
        need=True,
        report=False,
        screen=False,
        strict=True,
    )
    trainer = Trainer(
        max_steps=2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Copying(), loader(2), loader(8))
    assert callback.need is not None
    assert callback.need.layer == "net.rnn"
    (stored,) = needs_in(StoredRun(tmp_path / "run"))
    assert stored.further == callback.need.further
    assert (stored.lead, stored.sentence) == (callback.need.lead, callback.need.sentence)
    assert stored.peak_lag == 6


def test_recorder_of_plain_loops_refuses_need(tmp_path: Path) -> None:
    with pytest.raises(rnndiag.errors.BadArgument, match="memory_need"):
        rnndiag.Recorder(ShiftRegister(2), tmp_path / "run", need=True)  # type: ignore[call-arg]


FACTORY = """
import torch
from need.shift_register import ShiftRegister, copy_batches, cross_entropy

def build():
    return ShiftRegister(3), cross_entropy, copy_batches(6, 1, sequences=160)[0]
"""


def test_command_tells_the_need_of_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "factory.py").write_text(FACTORY)
    assert main(["snapshot", "factory.py:build", "-o", "frozen"]) == 0
    assert main(["need", "--snapshot", "frozen", "--beyond", "3", "--json", "need.json"]) == 0
    told = json.loads((tmp_path / "need.json").read_text())
    assert told["lead"] == "needed_beyond"
    assert told["peak_lag"] == 6
    assert told["sentences"][0] in capsys.readouterr().out


def test_command_says_what_is_wrong_with_a_snapshot(tmp_path: Path) -> None:
    assert main(["need", "--snapshot", str(tmp_path / "absent")]) == 3


def test_figure_shows_use_and_need_on_one_scale(tmp_path: Path) -> None:
    groups = (
        Group(1, 7, 0.002, 0.001, 0.003, 0.01, 0.2, False),
        Group(8, 30, 0.1, 0.05, 0.15, 0.01, 0.02, True),
    )
    need = replace(QUIET, further=FAR, groups=groups, reach=11.0, peak_lag=9.0)
    with RunWriter(tmp_path / "run") as writer:
        writer.append(Recording(5, measurements=need_measurements(need)))
    data = FIGURES["F12"].make(Context(StoredRun(tmp_path / "run")))
    assert data.finding == need.sentence
    use, bars = data.panels
    assert (use.title, bars.title) == ("USE", "NEED")
    assert (use.y.low, use.y.high) == (bars.y.low, bars.y.high)
    assert use.y.high >= need.scale
    strong, faint = (band.strength for band in (bars.bands[2], bars.bands[1]))
    assert strong > faint
    assert data.table is not None
    assert [row[0] for row in data.table.rows] == ["present", "1-7", "8-30"]


def test_run_without_a_need_says_so(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        writer.append(Recording(5))
    data = FIGURES["F12"].make(Context(StoredRun(tmp_path / "run")))
    assert "Not recorded" in data.absent
