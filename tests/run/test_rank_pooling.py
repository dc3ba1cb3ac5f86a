"""Ranks are samples of one batch: pooled by default, apart on request, and the reader says over how many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sample_run import LAYER, Write, content, recording

from rnndiag.errors import RunNotWritten, RunUnreadable
from rnndiag.run.run import open_run
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import QUANTITIES
from rnndiag.store.ranks import POOLING, pooled
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter


def of(name: str, *values: object) -> Measurement:
    return pooled([Measurement.of(name, np.asarray(v)) for v in values])


def test_a_linear_quantity_is_averaged() -> None:
    assert np.allclose(of("adjoint_norm", np.ones((2, 4)), 3 * np.ones((2, 4))).values, 2)


def test_a_log_is_averaged_as_what_it_is_the_log_of() -> None:
    found = of("credit_profile", *[np.full((2, 6), np.log(c)) for c in (1.0, 3.0)])
    assert np.allclose(found.values, np.log(2.0))
    silent = of("credit_profile", *[np.full((2, 6), -np.inf)] * 2)
    assert np.isneginf(silent.values).all()
    half = of("credit_profile", np.full((1, 6), -np.inf), np.zeros((1, 6)))
    assert np.allclose(half.values, np.log(0.5))
    tiny = of("credit_profile", np.full((1, 6), -2000.0), np.full((1, 6), -2000.0))
    assert np.allclose(tiny.values, -2000)
    assert np.isposinf(of("credit_profile", np.zeros((1, 6)), np.full((1, 6), np.inf)).values).all()


def test_other_ways_to_pool() -> None:
    assert of("nonfinite_states", [1, 2], [3, 4]).values.tolist() == [4, 6]
    assert of("residual", [1e-7], [3e-5]).values == pytest.approx(3e-5)
    assert of("tail_mean_square_error", [3.0], [4.0]).values == pytest.approx(2.5)
    assert of("sequence_index", [1.0], [2.0]).values.tolist() == [1.0]
    assert {q.pool for q in QUANTITIES.values()} == set(POOLING)


def test_nan_of_one_rank_stays_and_missing_lags_do_not_count() -> None:
    assert np.isnan(of("loss", 1.0, np.nan).values)
    found = of("window_bias", [1.0, 1.0, 1.0], [3.0])
    assert found.values.tolist() == [2.0, 1.0, 1.0]
    assert np.isnan(of("residual", [np.nan], [1.0]).values[0])


def test_ranks_are_pooled_or_apart(write: Write) -> None:
    for rank in (0, 1, 2):
        run = write(range(0, 30, 10), rank=rank, world_size=3)
    opened = open_run(run)
    assert opened.ranks == (0, 1, 2)
    assert len(opened) == 3
    loss = opened["loss"]
    assert loss.values.tolist() == [101.0, 111.0, 121.0]
    assert loss.ranks.tolist() == [3, 3, 3]
    assert loss.pooling == "the mean over ranks"
    apart = opened.select("loss", rank=1)
    assert (apart.values.tolist(), apart.pooling) == ([101.0, 111.0, 121.0], "")
    assert opened.first.ranks == (0, 1, 2)
    assert opened.at(10, rank=2)["loss"].values == 211.0
    expected = np.mean([c["adjoint_norm"] for c in map(by_name, (0, 1, 2))], axis=0)
    assert np.allclose(opened.first["adjoint_norm", LAYER].values, expected, rtol=1e-6)
    with pytest.raises(RunUnreadable, match="rank 7"):
        opened.select("loss", rank=7)


def by_name(rank: int) -> dict[str, np.ndarray]:
    return {m.name: m.values for m in content(0, rank)}


def test_a_rank_that_misses_a_step_is_not_counted_there(write: Write) -> None:
    run = write([0, 10, 20], rank=0)
    write([0, 20], rank=1)
    loss = open_run(run)["loss"]
    assert loss.ranks.tolist() == [2, 1, 2]
    assert loss.values.tolist() == [51.0, 11.0, 71.0]


def test_the_worst_verdict_holds(tmp_path: Path) -> None:
    told = [("exact", {}), ("inexact", {"rnn.l0": "dropout"}), ("unverified", {"rnn.l1": "frozen"})]
    for rank, (verdict, reasons) in enumerate(told):
        with RunWriter(tmp_path / "run", rank=rank) as writer:
            writer.append(Recording(0, rank=rank, verdict=verdict, reasons=reasons))  # type: ignore[arg-type]
    found = open_run(tmp_path / "run").last
    assert found.verdict == "inexact"
    assert found.reasons == {"rnn.l0": "rank 1: dropout", "rnn.l1": "rank 2: frozen"}


def test_the_last_of_two_recordings_of_one_step_wins(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        for loss in (1.0, 2.0):
            writer.append(Recording(5, measurements=(Measurement.of("loss", loss),)))
    opened = open_run(tmp_path / "run")
    assert opened["loss"].values.tolist() == [2.0]
    assert opened.superseded == 1


def test_a_fresh_fit_never_reuses_a_directory(write: Write) -> None:
    from rnndiag.store.writer import free_directory

    run = write([0])
    with pytest.raises(RunNotWritten, match=r"already holds a run.*run-2 is free"):
        RunWriter(run)
    assert free_directory(run) == run.with_name("run-2")
    write([0], name="run-2")
    assert free_directory(run) == run.with_name("run-3")
    assert free_directory(run.with_name("other")) == run.with_name("other")


def test_a_resume_supersedes_what_came_after_its_step(write: Write) -> None:
    run = write(range(0, 100, 10))
    write(range(60, 90, 10), resumed_from_step=50)
    opened = open_run(run)
    assert opened.steps.tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80]
    assert opened.superseded == 4
    (problem,) = opened.problems
    assert str(problem) == (
        "4 recordings were re-recorded or dropped after resuming at step 50; the earlier ones are superseded."
    )
    assert not problem.lost
    write(range(30, 50, 10), resumed_from_step=20)
    opened = open_run(run)
    assert opened.steps.tolist() == [0, 10, 20, 30, 40]
    assert [start.get("resumed_from_step") for start in opened.starts] == [None, 50, 20]


def test_ranks_that_join_or_leave_on_a_resume(write: Write) -> None:
    run = write(range(0, 60, 10), rank=0, world_size=2)
    write(range(0, 60, 10), rank=1, world_size=2)
    write(range(30, 60, 10), rank=0, resumed_from_step=20)
    opened = open_run(run)
    assert opened["loss"].ranks.tolist() == [2, 2, 2, 1, 1, 1]
    write(range(50, 70, 10), rank=0, resumed_from_step=40, world_size=2)
    write(range(50, 70, 10), rank=1, resumed_from_step=40, world_size=2)
    opened = open_run(run)
    assert opened.steps.tolist() == [*range(0, 70, 10)]
    assert opened["loss"].ranks.tolist() == [2, 2, 2, 1, 1, 2, 2]


RANK = """
import sys, time
sys.path[:0] = ["tests"]
from sample_run import recording
from rnndiag.store.writer import RunWriter

folder, rank, first, resumed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
writer = RunWriter(folder, rank=rank, world_size=2, resumed_from_step=None if resumed == "no" else int(resumed))
for step in range(first, 10**6):
    assert writer.append(recording(step, rank, epoch=0 if resumed == "no" else 1))
    print(step, flush=True)
    time.sleep(0.001)
"""


def test_two_processes_as_ranks_killed_and_resumed(tmp_path: Path) -> None:
    """Both ranks are killed, resume at step 10, and are killed again: each step counts once, from the right start."""
    run = tmp_path / "run"

    def train(first: int, until: int, resumed: str) -> None:
        command = [sys.executable, "-c", RANK, str(run)]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(first), resumed], stdout=subprocess.PIPE, text=True
            )
            for rank in (0, 1)
        ]
        for process in ranks:
            assert process.stdout is not None
            while int(process.stdout.readline()) < until:
                pass
        for process in ranks:
            process.kill()
            process.communicate()

    train(0, 25, "no")
    before = open_run(run)
    assert before.status.word == "not closed"
    train(11, 16, "10")
    opened = open_run(run)
    assert opened.ranks == (0, 1)
    steps = opened.steps.tolist()
    assert steps == list(range(len(steps)))
    assert steps[-1] >= 16
    for rank in (0, 1):
        for step in opened.select("loss", rank=rank).steps.tolist():
            found = opened.at(step, rank=rank)
            assert found.epoch == int(step > 10)
            assert found["loss"].values == 1.0 + step + 100 * rank
    assert opened.superseded == sum(len(s.places) for s in before.scan.segments) - 22
    assert [p.kind for p in opened.problems if p.kind != "cut off"] == ["resumed"]
    assert [start["start"] for start in opened.starts] == [0, 1]


def test_two_writers_of_one_rank_are_named(write: Write) -> None:
    run = write([0, 10], start=0)
    write([10, 20], start=0, resumed_from_step=5)
    texts = [str(problem) for problem in open_run(run).problems]
    assert any("two writers used rank 0 and start 0" in text for text in texts)


def test_a_forked_process_must_not_write(tmp_path: Path) -> None:
    code = (
        "import os, sys, rnndiag\n"
        "writer = rnndiag.RunWriter(sys.argv[1])\n"
        "writer.append(rnndiag.Recording(0))\n"
        "if not os.fork():\n"
        "    try:\n"
        "        writer.append(rnndiag.Recording(1))\n"
        "    except rnndiag.errors.RunNotWritten as fault:\n"
        "        print(fault, flush=True)\n"
        "    writer.close()\n"
        "    del writer\n"
        "    sys.exit()\n"
        "os.wait()\n"
        "writer.append(rnndiag.Recording(2))\n"
        "writer.close()\n"
    )
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True
    )
    assert "A forked process" in done.stdout
    assert "Record in the process that opened the run" in done.stdout
    opened = open_run(run)
    assert opened.steps.tolist() == [0, 2]
    assert opened.problems == ()
    assert opened.status == "finished"


def test_phases_are_apart(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        for step in (0, 10):
            writer.append(recording(step))
            writer.append(Recording(step, "val", measurements=(Measurement.of("loss", -1.0),)))
    opened = open_run(tmp_path / "run")
    assert opened.phases == ("train", "val")
    assert opened.steps.tolist() == [0, 10]
    assert len(opened) == 4
    assert opened["loss"].values.tolist() == [1.0, 11.0]
    assert opened.select("loss", phase="val").values.tolist() == [-1.0, -1.0]
    assert opened.last.phase == "train"
