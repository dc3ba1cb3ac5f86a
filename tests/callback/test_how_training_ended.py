"""What a run says of the end of its training: a signal, an exception, a layer that is trained no more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import rnndiag
from rnndiag.health import exit_code

HERE = Path(__file__).parent
PROGRAM = """
import os, signal, sys, warnings
import fits, rnndiag
warnings.simplefilter("ignore")

class Net(fits.Net):
    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 8:
            os.kill(os.getpid(), signal.SIGTERM)

callback = rnndiag.GradientDiagnostics(
    sys.argv[1], every_n_steps=1, report=False, measures=["contributions"]
)
fits.fit(Net, [callback], steps=30, data=fits.loader(30))
"""


def test_a_fit_that_sigterm_ends_says_so_and_is_not_passed(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    run = rnndiag.open_run(tmp_path / "run")
    assert str(run.status) == "ended early, SIGTERM", done.stderr[-2000:]
    assert 8 <= len(run.steps) < 30
    assert exit_code(rnndiag.check(run)) == 3


def train(recorder: rnndiag.Recorder, model: nn.Module, fault: BaseException | None = None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    for _ in range(8):
        with recorder.step() as step:
            step.backward(model(torch.randn(5, 2, 3))[0].square().mean())
        optimizer.step()
        optimizer.zero_grad()
    if fault is not None:
        raise fault


def train_and_close(recorder: rnndiag.Recorder, model: nn.Module, fault: BaseException) -> None:
    try:
        train(recorder, model, fault)
    finally:
        recorder.close()


def recorder_of(model: nn.Module, folder: Path) -> rnndiag.Recorder:
    options = {"measures": ["contributions"], "screen": False, "report": False}
    return rnndiag.Recorder(model, folder, every_n_steps=1, **options)  # type: ignore[arg-type]


def test_a_recorder_closed_in_a_finally_knows_what_ended_the_training(tmp_path: Path) -> None:
    model = nn.LSTM(3, 4)
    recorder = recorder_of(model, tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        train_and_close(recorder, model, ZeroDivisionError("planted"))
    run = rnndiag.open_run(tmp_path / "run")
    assert str(run.status) == "ended early, ZeroDivisionError"
    assert exit_code(rnndiag.check(run)) == 3


def test_a_training_inside_of_an_except_block_is_finished(tmp_path: Path) -> None:
    model = nn.LSTM(3, 4)
    try:
        raise MemoryError("the larger batch")
    except MemoryError:
        recorder = recorder_of(model, tmp_path / "run")
        train(recorder, model)
        recorder.close()
    run = rnndiag.open_run(tmp_path / "run")
    assert run.status.word == "finished"
    assert exit_code(rnndiag.check(run)) == 0


def test_an_interrupted_recorder_says_so(tmp_path: Path) -> None:
    model = nn.LSTM(3, 4)
    with pytest.raises(KeyboardInterrupt), recorder_of(model, tmp_path / "run") as recorder:
        train(recorder, model, KeyboardInterrupt())
    assert str(rnndiag.open_run(tmp_path / "run").status) == "ended early, interrupted"


@pytest.mark.parametrize(("every", "until", "status"), [(1, 8, "not_judged"), (3, 24, "pass")])
def test_a_layer_that_is_trained_no_more_ends_what_can_be_judged(
    tmp_path: Path, every: int, until: int, status: str
) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4), "head": nn.Linear(3, 1)})
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with recorder_of(model, tmp_path / "run") as recorder:
        for index in range(24):
            x = torch.randn(5, 2, 3)
            trained = index < until and index % every == 0
            with recorder.step() as step:
                step.backward((model["rnn"](x)[0] if trained else model["head"](x)).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    run = rnndiag.open_run(tmp_path / "run")
    assert run.steps.tolist() == list(range(0, until, every))
    found = next(one for one in rnndiag.check(run) if one.check == "damage")
    assert found.status == status
    lost = "no gradient went through a recurrent layer any more" in " ".join(found.details)
    assert lost == (status == "not_judged")
