"""The pytest plugin in a pytest of its own: the fixture of the docs, kept runs, and no torch unless used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import torch, pytest
import lightning.pytorch as L
from torch import nn

class DelayNet(L.LightningModule):
    def __init__(self, hidden=12):
        super().__init__()
        self.rnn = nn.RNN(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.mse_loss(self.head(self.rnn(x)[0]), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)

def delay_loader(length=20, delay=3):
    x = torch.randn(64, length, 1)
    data = torch.utils.data.TensorDataset(x, x.roll(delay, 1))
    return torch.utils.data.DataLoader(data, 16)

def train(rnndiag):
    L.seed_everything(0)
    trainer = L.Trainer(max_steps=12, logger=False, accelerator="cpu", enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False,
                        callbacks=[rnndiag.callback(every_n_steps=2)])
    trainer.fit(DelayNet(), delay_loader())
"""


def run_pytest(folder: Path, tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "test_it.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "rnndiag.pytest_plugin",
            "-q",
            "--no-header",
            *options,
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
            "PYTHONWARNINGS": "ignore",
            # installed or not, it is loaded once: by name
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_runs_are_recorded_checked_and_kept_where_a_test_fails(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.rnndiag.checks.reach]\nmin = 15\n")
    done = run_pytest(
        tmp_path,
        """
import torch
from program import DelayNet, train

def test_passes(rnndiag):
    train(rnndiag)
    run = rnndiag.run()
    assert 0 < run.reach(0.9) <= 20
    assert rnndiag.check(run, config={})

def test_fails(rnndiag):
    train(rnndiag)
    rnndiag.check()

def test_no_run(rnndiag):
    rnndiag.run()

def batch():
    x = torch.randn(4, 9, 1)
    return x, x.roll(2, 1)

def test_sound(rnndiag):
    assert rnndiag.preflight(DelayNet(), batch())

def test_swapped(rnndiag):
    model = DelayNet()
    model.rnn = torch.nn.RNN(1, 12)
    rnndiag.preflight(model, batch())
""",
        "--rnndiag-dir=kept",
        "--rnndiag-report",
    )
    assert "3 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert re.search(r"E +AssertionError:", done.stdout)
    assert "FAIL  reach" in done.stdout
    kept = re.search(r"run kept in (\S+)", done.stdout)
    assert kept is not None
    assert list((Path(kept[1]) / "recordings").iterdir())
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["test_fails"]
    page = re.search(r"report in (\S+)", done.stdout)
    assert page is not None, done.stdout
    assert "<html" in Path(page[1]).read_text()
    assert (
        "This test has recorded no run. Train with callbacks=[rnndiag.callback()] first."
        in done.stdout
    )
    assert "preflight: time and batch swapped" in done.stdout
    assert "Set batch_first=True" in done.stdout


def test_the_plugin_loads_no_torch_unless_used(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        """
import sys

def test_not_used():
    assert "torch" not in sys.modules
    assert "numpy" not in sys.modules

def test_asked_for_and_not_used(rnndiag):
    assert "torch" not in sys.modules
""",
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_fixture_hides_nothing_of_the_module(rnndiag: Any) -> None:
    module = sys.modules["rnndiag"]
    assert rnndiag.probe is module.probe
    assert rnndiag.estimators is module.estimators
    assert rnndiag.check != module.check
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        rnndiag.nothing_of_the_kind
