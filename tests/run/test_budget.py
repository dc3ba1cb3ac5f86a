"""The writer's manners: size budget, failures that cost training nothing, directories that cannot be used."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from sample_run import LAYER, Write, recording, segment_of

from rnndiag.errors import RunNotWritten
from rnndiag.run.run import open_run
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.size_budget import SizeBudget, is_matrix
from rnndiag.store.writer import RunWriter


def with_matrix(step: int, size: int = 32) -> Recording:
    matrix = Measurement.of("credit_matrix", np.full((size, size), float(step)), LAYER)
    return Recording(step, measurements=(matrix, Measurement.of("loss", float(step))))


def test_small_runs_keep_every_matrix(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        for step in range(30):
            assert writer.append(with_matrix(step))
    assert open_run(tmp_path / "run")["credit_matrix"].steps.size == 30


def test_the_budget_thins_matrices_then_intervals_then_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = 400_000
    with (
        caplog.at_level(logging.WARNING, "rnndiag"),
        RunWriter(tmp_path / "run", max_bytes=limit, durable=False) as writer,
    ):
        kept = [step for step in range(0, 20_000, 10) if writer.append(with_matrix(step))]
        assert writer.stopped
        assert writer.budget.factor == 8
    run = open_run(tmp_path / "run")
    assert run.steps.tolist() == kept
    assert 0.95 * limit < run.size <= limit + 4096
    gaps = np.diff(kept)
    assert sorted(set(gaps.tolist())) == [10, 20, 40, 80]
    assert (np.diff(gaps) >= 0).all()
    matrices = run["credit_matrix"].steps.tolist()
    early = [step for step in kept if step < 60]
    assert matrices[: len(early)] == early
    places = [kept.index(step) for step in matrices]
    assert all(place % 10 == 0 for place in places[len(early) + 1 :])
    noted = (
        run.at(kept[-1]).notes["not_measured"]
        if kept[-1] not in matrices
        else run.at(kept[-2]).notes["not_measured"]
    )
    assert noted == {"credit_matrix": "size budget: on every 10th recording"}
    texts = "\n".join(caplog.messages)
    assert "matrices took 6% of the size budget" in texts
    for factor in (2, 4, 8):
        assert f"intervals between recordings are now {factor} times as long" in texts
    assert texts.count("is used up at step") == 1


def test_a_schedule_that_stretches_itself_is_not_stretched_again() -> None:
    budget = SizeBudget(max_bytes=1000, used=600)
    budget.base_interval, budget.last_step = 10, 100
    assert budget.factor == 2
    assert [budget.wants(step) for step in (105, 110, 119, 120, 130, 90)] == [
        False,
        False,
        False,
        True,
        True,
        True,
    ]


def test_a_resumed_run_counts_what_is_there(write: Write) -> None:
    run = write(range(10))
    size = segment_of(run).stat().st_size
    writer = RunWriter(run, resumed_from_step=9, max_bytes=2 * size)
    assert size < writer.budget.used < 2 * size
    assert writer.budget.factor == 2
    writer.close()


def test_ranks_share_the_budget(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", rank=3, world_size=4, max_bytes=4000)
    assert writer.budget.max_bytes == 1000
    writer.close()


def test_what_is_a_matrix() -> None:
    assert is_matrix("credit_matrix", ())
    assert not is_matrix("credit_profile", ())
    assert is_matrix("mine", ("lag", "output"))
    assert not is_matrix("mine", ("time", "time2"))


def test_a_failed_append_is_told_once_and_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(tmp_path / "run")
    assert writer.append(recording(0))
    size = segment_of(tmp_path / "run").stat().st_size
    plain = os.pwrite

    def half(descriptor: int, data: memoryview, offset: int) -> int:
        if offset > size:
            raise OSError(28, "No space left on device")
        return plain(descriptor, data[:700], offset)

    with caplog.at_level(logging.WARNING, "rnndiag"):
        monkeypatch.setattr(os, "pwrite", half)
        assert not writer.append(recording(1))
        assert segment_of(tmp_path / "run").stat().st_size == size
        assert not writer.append(recording(2))
        monkeypatch.setattr(os, "pwrite", plain)
        assert writer.append(recording(3))
        writer.close()
    assert (
        caplog.text.count(
            "could not write step 1 (No space left on device), dropped, training goes on"
        )
        == 1
    )
    assert "step 2" not in caplog.text
    assert [p.step for p in writer.problems] == [1, 2]
    run = open_run(tmp_path / "run")
    assert run.steps.tolist() == [0, 3]
    assert run.verify() == ()
    assert [p.kind for p in run.problems] == ["dropped"]


def test_a_failed_fsync_is_a_failed_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter(tmp_path / "run")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    assert [writer.append(recording(step)) for step in range(4)] == [False] * 4
    assert writer.stopped
    assert [p.kind for p in writer.problems] == ["not stored"] * 3 + ["stopped"]
    monkeypatch.undo()
    writer.close()
    run = open_run(tmp_path / "run")
    assert (len(run), run.status) == (0, "finished")
    assert [(p.kind, p.lost) for p in run.problems] == [("dropped", False)]
    assert "4 recordings were dropped (steps 0 to 3)" in str(run.problems[0])


def test_a_share_that_cannot_sync_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with RunWriter(tmp_path / "run") as writer:
        assert writer.append(recording(0))


def test_strict_raises(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", strict=True)
    with pytest.raises(RunNotWritten, match=r"Step 0 could not be written.*empty or too long"):
        writer.append(Recording(0, phase=""))
    writer.close()
    with pytest.raises(RunNotWritten, match="is closed"):
        writer.append(Recording(0))
    writer.close()


def test_a_directory_that_cannot_be_used_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(
        RunNotWritten, match=r"cannot be written \(Not a directory\).*Choose another dirpath"
    ):
        RunWriter(tmp_path / "file")


def test_a_large_run_rolls_its_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnndiag.store.limits.SEGMENT_ROLLS_AT", 60_000)
    with RunWriter(tmp_path / "run", {"seed": 1}) as writer:
        for step in range(40):
            assert writer.append(recording(step))
    files = sorted((tmp_path / "run" / "recordings").iterdir())
    assert len(files) > 2
    assert all(file.stat().st_size <= 60_000 for file in files[:-1])
    run = open_run(tmp_path / "run")
    assert run.steps.tolist() == [*range(40)]
    assert run.problems == ()
    (tmp_path / "alone" / "recordings").mkdir(parents=True)
    os.rename(files[1], tmp_path / "alone" / "recordings" / files[1].name)
    alone = open_run(tmp_path / "alone")
    assert alone.provenance == {"seed": 1}
    assert len(alone) > 0


def test_leaving_by_an_exception_is_said(tmp_path: Path) -> None:
    def train() -> None:
        with RunWriter(tmp_path / "run") as writer:
            writer.append(recording(0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    run = open_run(tmp_path / "run")
    assert run.status == "ended early, ZeroDivisionError"
    assert run.status.word == "ended early"
