"""The ways to a need of memory besides the function: the callback, the command, the figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from need.shift_register import IGNORED, ShiftRegister, copy_batches, cross_entropy
from need.test_need_verdict import FAR, QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader

import rnndiag
from rnndiag.cli import main
from rnndiag.errors import NotSupported
from rnndiag.report.context import Context
from rnndiag.report.figures import FIGURES
from rnndiag.report.svg import draw
from rnndiag.stats.need import Group, MemoryNeed, Use, needs_in, screens_in
from rnndiag.stats.need.stored import need_measurements
from rnndiag.store.measurement import Measurement
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


class InChunks(rnndiag.train.TruncatedBPTT, LightningModule):  # type: ignore[misc]
    """The copying net, trained in chunks of three steps."""

    def __init__(self) -> None:
        super().__init__(k1=3)
        self.net = ShiftRegister(3)

    def tbptt_step(self, chunk: Any, state: Any) -> Any:
        states, state = self.net.rnn(chunk["x"], state)
        logits = self.net.head(states).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, chunk["y"].flatten(), ignore_index=IGNORED)
        return loss, state


def test_module_with_truncated_bptt_is_asked_for_the_loss_of_whole_batches() -> None:
    need = rnndiag.memory_need(InChunks(), copy_batches(6))
    assert (need.beyond, need.limit, need.lead) == (3, "window", "needed_beyond")
    same = rnndiag.memory_need(ShiftRegister(3), copy_batches(6), cross_entropy, beyond=3)
    assert need.further == same.further


def test_training_step_that_optimizes_by_itself_is_refused() -> None:
    manual = type("Manual", (LightningModule,), {"automatic_optimization": False})()
    with pytest.raises(NotSupported, match="optimizes by itself"):
        rnndiag.memory_need(manual, copy_batches(6))


def test_recorder_of_plain_loops_refuses_need(tmp_path: Path) -> None:
    with pytest.raises(rnndiag.errors.BadArgument, match="memory_need"):
        rnndiag.Recorder(ShiftRegister(2), tmp_path / "run", need=True)  # type: ignore[call-arg]


FACTORY = """
import torch
from need.shift_register import IGNORED, ShiftRegister, copy_batches, cross_entropy

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
    assert data.finding.startswith(need.sentence)
    use, bars = data.panels
    assert (use.title, bars.title) == ("USE", "NEED")
    assert (use.y.low, use.y.high) == (bars.y.low, bars.y.high)
    assert use.y.high >= need.scale
    strong, faint = (band.strength for band in (bars.bands[2], bars.bands[1]))
    assert strong > faint
    assert data.table is not None
    assert [row[0] for row in data.table.rows] == ["present", "1-7", "8-30"]


def test_figure_hatches_lags_that_were_not_tested(tmp_path: Path) -> None:
    groups = (Group(1, 7, 0.0, 0.0, 0.0, 1.0, 1.0, False),)
    need = replace(
        QUIET,
        groups=groups,
        max_lag=7,
        beyond=12,
        use=(Use(1, 0.2, 0.1, 0.3), Use(11, 0.0, 0.0, 0.0)),
    )
    with RunWriter(tmp_path / "run") as writer:
        writer.append(Recording(5, measurements=need_measurements(need)))
    data = FIGURES["F12"].make(Context(StoredRun(tmp_path / "run")))
    bars = data.panels[-1]
    (hatched,) = [band for band in bars.bands if band.hatched]
    assert hatched.x.tolist() == [7.5, 12.5]
    assert bars.notes == ("not tested beyond lag 7",)
    assert "stroke-opacity" in draw(bars, "need")
    data = FIGURES["F12"].make(Context(_run_of(tmp_path / "few", replace(need, groups=()))))
    (hatched,) = [band for band in data.panels[-1].bands if band.hatched]
    assert hatched.x[0] == 0.5


def _run_of(path: Path, need: MemoryNeed) -> StoredRun:
    with RunWriter(path) as writer:
        writer.append(Recording(5, measurements=need_measurements(need)))
    return StoredRun(path)


class Chunked(Copying):
    """The same net trained with a window of 3 steps."""

    def training_step(self, batch: Any, _index: int) -> Tensor:
        state, outputs = None, []
        for piece in batch["x"].split(3, 1):
            y, state = self.net.rnn(piece, state)
            state = state.detach()
            outputs.append(y)
        logits = self.net.head(torch.cat(outputs, 1))
        flat = logits.flatten(0, 1)
        return torch.nn.functional.cross_entropy(flat, batch["y"].flatten(), ignore_index=-100)


def test_figure_of_a_run_with_a_detached_state_has_all_three_strips(tmp_path: Path) -> None:
    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run",
        every_n_steps=1,
        measures=["contributions", "lags", "need_screen"],
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
    trainer.fit(Chunked(), loader(2), loader(8))
    run = StoredRun(tmp_path / "run")
    data = FIGURES["F12"].make(Context(run))
    assert [panel.title for panel in data.panels] == ["REACH", "USE", "NEED"]
    assert data.panels[0].notes == ("the gradient is cut after 3 steps",)
    assert len({(panel.x.low, panel.x.high) for panel in data.panels}) == 1
    # The pieces are screened as one sequence: else no lag beyond 2 could be seen.
    (curve,) = screens_in(run)
    assert curve.layer == "net.rnn.l0"
    assert curve.peak == ("linear", 6)


def test_figure_shows_what_the_screen_points_at_where_no_need_was_measured(tmp_path: Path) -> None:
    values = np.full((3, 3, 2), np.nan)
    values[0] = [[0.0, 0.02], [0.3, 0.02], [0.01, 0.02]]
    labels = {"screen_lag": ("1", "2", "3")}
    measured = Measurement.of("need_screen", values, "rnn.l0", labels)
    with RunWriter(tmp_path / "run") as writer:
        writer.append(Recording(5, measurements=(measured,)))
    data = FIGURES["F12"].make(Context(StoredRun(tmp_path / "run")))
    (panel,) = data.panels
    assert panel.title == "SCREEN"
    assert panel.marks[0].at == 2
    assert "no verdict" in data.finding


def test_run_without_a_need_says_so(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        writer.append(Recording(5))
    data = FIGURES["F12"].make(Context(StoredRun(tmp_path / "run")))
    assert "Not recorded" in data.absent
