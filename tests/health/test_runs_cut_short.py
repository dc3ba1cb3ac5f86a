"""A run that was cut short, or lost recordings or ranks, does not pass unless asked (exit code 0)."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_form_runs import PROVENANCE, finding_of, record
from fits import Net, fit, loader

import rnndiag
from rnndiag.cli import main
from rnndiag.health import exit_code
from rnndiag.store.ending import reason_of
from rnndiag.store.writer import RunWriter

MakeRun = Callable[..., rnndiag.Run]
REACH = {"checks": {"reach": {"min": 10}}}


def test_recordings_lost_to_a_full_disk_are_counted_and_not_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(tmp_path / "run", PROVENANCE)
    for step in range(10):
        assert record(writer, step)
    plain = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for step in range(10, 60):
        if writer.wants(step):
            assert not record(writer, step)
    monkeypatch.setattr(os, "fsync", plain)
    writer.close(final_step=59)
    run = rnndiag.open_run(tmp_path / "run")
    (end,) = run.endings
    assert (end.dropped, end.first_dropped, end.last_dropped) == (50, 10, 59)
    assert any("50 recordings were dropped (steps 10 to 59)" in str(p) for p in run.problems)
    found = rnndiag.check(run, config=REACH)
    assert finding_of(found, "reach").status == "pass"
    assert finding_of(found, "damage").status == "not_judged"
    assert "50 recordings were dropped from step 10 on" in " ".join(
        finding_of(found, "damage").details
    )
    assert exit_code(found) == 3


def test_a_run_whose_size_limit_was_reached_is_not_passed(tmp_path: Path) -> None:
    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run", every_n_steps=1, max_bytes=400_000, report=False, black_box=False
    )
    fit(Net, [callback], steps=60, data=loader(60))
    run = rnndiag.open_run(tmp_path / "run")
    (end,) = run.endings
    assert end.dropped > 0
    assert end.final_step == 59
    assert "size limit" in end.why_dropped
    assert exit_code(rnndiag.check(run, config={"checks": {"reach": {"min": 1}}})) == 3


def test_the_message_of_the_size_limit_names_the_option(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunWriter(tmp_path / "run", max_bytes=50_000, durable=False) as writer:
        for step in range(40):
            record(writer, step)
    assert "larger max_bytes" in caplog.text


def test_what_the_recorder_gave_up_is_in_the_run(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", PROVENANCE)
    for step in range(10):
        record(writer, step)
    fault = "the recorder (batch_started) failed: ZeroDivisionError: planted."
    writer.close(final_step=60, gave_up={"the recorder (batch_started)": fault})
    run = rnndiag.open_run(tmp_path / "run")
    assert any("planted" in str(problem) for problem in run.problems)
    found = rnndiag.check(run)
    assert finding_of(found, "damage").status == "not_judged"
    assert exit_code(found) == 3


def test_a_fit_whose_recorder_gave_up_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = rnndiag.GradientDiagnostics(tmp_path / "run", every_n_steps=1, report=False)

    class Breaking(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 6 and callback._fit is not None:
                callback._fit.schedule = None  # type: ignore[assignment]

    with warnings.catch_warnings(record=True) as told, caplog.at_level("INFO", "rnndiag"):
        warnings.simplefilter("always")
        fit(Breaking, [callback], steps=20, data=loader(20))
    assert len([one for one in told if "AttributeError" in str(one.message)]) == 1
    assert "failed 3 times in a row and is left out" in caplog.text
    run = rnndiag.open_run(tmp_path / "run")
    (end,) = run.endings
    assert end.gave_up
    assert end.final_step is not None
    assert end.final_step > run.steps[-1]
    assert exit_code(rnndiag.check(run)) == 3


class Interrupted(Net):
    """Raises at the tenth batch."""

    fault: BaseException = ZeroDivisionError("planted")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 10:
            raise self.fault
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(ZeroDivisionError("planted"), "ZeroDivisionError"), (KeyboardInterrupt(), "interrupted")],
)
def test_a_fit_that_was_cut_short_is_not_judged_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: BaseException, reason: str
) -> None:
    callback = rnndiag.GradientDiagnostics(tmp_path / "run", every_n_steps=1, report=False)

    def make() -> Net:
        net = Interrupted()
        net.fault = fault
        return net

    with pytest.raises((type(fault), SystemExit)):
        fit(make, [callback], steps=20, data=loader(20))
    run = rnndiag.open_run(tmp_path / "run")
    assert (run.status.word, run.status.reason) == ("ended early", reason)
    assert exit_code(rnndiag.check(run)) == 3
    assert main(["check", str(run.path)]) == 3
    assert reason in capsys.readouterr().out
    assert main(["check", str(run.path), "--unfinished"]) == 0


def test_sigterm_is_named(tmp_path: Path) -> None:
    named = type("SIGTERMException", (SystemExit,), {})
    assert reason_of(named()) == "SIGTERM"
    with RunWriter(tmp_path / "run", PROVENANCE) as writer:
        for step in range(10):
            record(writer, step)
        writer.close("SIGTERM", cut_short=True)
    assert str(rnndiag.open_run(tmp_path / "run").status) == "ended early, SIGTERM"


def test_a_rank_without_a_file_is_named_and_not_passed(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", PROVENANCE, world_size=2) as writer:
        for step in range(10):
            record(writer, step)
    run = rnndiag.open_run(tmp_path / "run")
    assert any("rank 1 of 2 has no readable file" in str(problem) for problem in run.problems)
    assert exit_code(rnndiag.check(run)) == 3


def test_a_rank_that_ends_early_is_named_and_not_passed(tmp_path: Path) -> None:
    for rank, count in ((0, 20), (1, 12)):
        with RunWriter(tmp_path / "run", PROVENANCE, rank=rank, world_size=2) as writer:
            for step in range(count):
                record(writer, step, rank=rank)
    run = rnndiag.open_run(tmp_path / "run")
    told = [str(problem) for problem in run.problems]
    assert any("rank 1 lacks 8 recordings" in text and "steps 12 to 19" in text for text in told)
    assert exit_code(rnndiag.check(run)) == 3


def test_an_accident_that_one_rank_recorded_by_itself_is_no_missing_recording(
    tmp_path: Path,
) -> None:
    for rank, count in ((0, 13), (1, 12)):
        with RunWriter(tmp_path / "run", PROVENANCE, rank=rank, world_size=2) as writer:
            for step in range(count):
                notes = {"black_box": {"sentence": "a jump"}} if step == 12 else {}
                record(writer, step, rank=rank, notes=notes)
    assert rnndiag.open_run(tmp_path / "run").problems == ()
