"""What goes wrong around a recorded training: no memory, no disk, a directory removed, a scaler without a scale."""

from __future__ import annotations

import errno
import gc
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from fits import HIDDEN, Net, assert_same, fit
from lightning.pytorch.plugins.precision import Precision

import rnndiag
from rnndiag.errors import BadArgument
from rnndiag.recorder.faults import RnndiagWarning, is_out_of_memory
from rnndiag.recorder.measures import MEASURES
from rnndiag.recorder.measures import measure as registry


class OwnScaling(Precision):
    """A precision plugin of a user, whose scaler tells no scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scaler = object()


def test_scaler_without_a_scale_is_no_fault(diagnostics: Any) -> None:
    callback = diagnostics(measures=["contributions"], screen=False)
    assert_same(fit(Net, [callback], plugins=[OwnScaling()]), fit(Net, plugins=[OwnScaling()]))
    recordings = [r for r in rnndiag.open_run(callback.run_dir).recordings if r.phase == "train"]
    assert {r.verdict for r in recordings} == {"exact"}
    assert len(recordings) == 4


def test_failed_allocation_ends_the_recording_and_is_told_once(
    diagnostics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        return torch.empty(2**50)

    for name in ("gates", "lags"):
        planted = registry.Measure(name, MEASURES[name].cost, of_layer=fail)
        monkeypatch.setitem(MEASURES, name, planted)
    callback = diagnostics(strict=False, screen=False, schedule=lambda step: step < 2)
    with pytest.warns(RnndiagWarning) as caught:
        ours = fit(Net, [callback])
    assert_same(ours, fit(Net))
    (message,) = [str(one.message) for one in caught if issubclass(one.category, RnndiagWarning)]
    assert "a recording failed" in message
    assert "That step is not recorded" in message
    assert not callback.run_dir.exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("alloc memory"), False),
    ],
)
def test_failed_allocations_are_known(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


class Weighing(torch.optim.SGD):
    """Counts the states and gates of whole sequences that live while it makes its step."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, 0.1)
        self.alive: list[int] = []

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        gc.collect()
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
        self.alive.append(sum(one.dim() == 3 and one.shape[-1] >= HIDDEN for one in tensors))
        super().step()
        return loss


class Weighed(Net):
    """Trained by it."""

    def configure_optimizers(self) -> Any:
        self.weighing = Weighing(self.parameters())
        return self.weighing


def test_what_a_recording_holds_is_freed_before_the_optimizer_step(diagnostics: Any) -> None:
    plain, ours = fit(Weighed), fit(Weighed, [diagnostics(screen=False)])
    assert_same(ours, plain)
    assert ours.weighing.alive == plain.weighing.alive


def test_fsync_that_fails_at_opening_costs_no_run(
    diagnostics: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    callback = diagnostics(measures=["contributions"], screen=False)
    assert_same(fit(Net, [callback]), fit(Net))
    assert caplog.text.count("cannot be synchronised to disk (Input/output error)") == 1
    assert rnndiag.open_run(callback.run_dir).steps_of("train").tolist() == [0, 1, 2, 3]


class Removing(L.Callback):
    """Removes a directory after the second step, as a person who tidies up."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            shutil.rmtree(self.path)


def test_run_directory_removed_while_training(
    diagnostics: Any, caplog: pytest.LogCaptureFixture
) -> None:
    callback = diagnostics(measures=["contributions"], screen=False)
    assert_same(fit(Net, [callback, Removing(callback.run_dir)]), fit(Net))
    assert caplog.text.count("were removed while it was written") == 1
    run = rnndiag.open_run(callback.run_dir)
    assert run.steps_of("train").tolist() == [2, 3]
    assert run.problems  # that a file is missing is said


def test_max_bytes_bounds_the_run(diagnostics: Any, caplog: pytest.LogCaptureFixture) -> None:
    callback = diagnostics(max_bytes=150_000, screen=False)
    fit(Net, [callback], steps=12, max_epochs=3)
    size = sum(file.stat().st_size for file in (callback.run_dir / "recordings").iterdir())
    assert size < 150_000
    assert "max_bytes" in caplog.text or len(rnndiag.open_run(callback.run_dir).steps) < 12


def test_max_bytes_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="max_bytes is 0"):
        rnndiag.GradientDiagnostics(tmp_path, max_bytes=0)
