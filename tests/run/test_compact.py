"""Compacting: smaller, the kept recordings bit for bit, and readable whatever happens."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from sample_run import LAYER, Write, recording, same, segment_of

from rnndiag.errors import BadArgument, RunNotWritten, RunUnreadable
from rnndiag.run.run import open_run
from rnndiag.store.compact import compact
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter


def with_matrices(path: Path, count: int = 31, size: int = 40) -> None:
    with RunWriter(path, {"seed": 5}, durable=False) as writer:
        for step in range(count):
            matrix = Measurement.of("credit_matrix", np.full((size, size), float(step)), LAYER)
            writer.append(
                Recording(
                    step, measurements=(*recording(step).measurements, matrix), notes={"a": 1}
                )
            )


def test_matrices_go_first(tmp_path: Path) -> None:
    with_matrices(tmp_path / "run")
    before = open_run(tmp_path / "run")
    goal = before.size - 100_000
    done = compact(tmp_path / "run", goal, dry_run=True)
    assert (done.kept, done.recordings, done.without_matrices) == (31, 31, 27)
    assert before.size == open_run(tmp_path / "run").size
    done = compact(tmp_path / "run", goal)
    run = open_run(tmp_path / "run")
    assert run.size == done.after <= goal
    assert run.steps.tolist() == [*range(31)]
    assert run["credit_matrix"].steps.tolist() == [0, 10, 20, 30]
    for found in run.recordings:
        assert same(
            Recording(found.step, measurements=found.measurements[:5]), recording(found.step)
        )
    assert run.at(7).notes == {
        "a": 1,
        "not_measured": {"credit_matrix": "rnndiag compact: kept with every 10th recording"},
    }
    assert run.at(10).notes == {"a": 1}
    assert (run.status, run.provenance, run.verify()) == ("finished", {"seed": 5}, ())
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["recordings", "run.json"]


def test_then_every_other_recording(write: Write) -> None:
    run = write(range(100), provenance={"seed": 6})
    size = open_run(run).size
    for goal in (size // 2, size // 4, 40_000):
        done = compact(run, goal)
        opened = open_run(run)
        steps = opened.steps
        assert done.after == opened.size <= goal
        assert (steps[0], steps[-1]) == (0, 99)
        assert len(set(np.diff(steps)[:-1].tolist())) == 1
        assert all(same(r, recording(r.step)) for r in opened.recordings)
        assert opened.verify() == ()
    with pytest.raises(
        BadArgument, match=r"cannot be made so small: its first and last recordings alone take"
    ):
        compact(run, 5000)
    assert open_run(run).steps.tolist() == steps.tolist()


def test_superseded_and_damaged_recordings_go_at_once(write: Write) -> None:
    run = write(range(0, 100, 10))
    write(range(60, 90, 10), resumed_from_step=50)
    for rank in (1,):
        write(range(0, 30, 10), rank=rank)
    before = open_run(run)
    place = before.groups[1][0]
    file = run / place.segment.label
    data = bytearray(file.read_bytes())
    data[place.start + place.size - 3] ^= 1
    file.write_bytes(data)
    expected = {r.step: r for r in open_run(run).recordings}
    done = compact(run, 10**9)
    assert (done.superseded, done.damaged) == (4, 1)
    opened = open_run(run)
    assert opened.superseded == 0
    assert opened.verify() == ()
    assert opened.status == "finished"
    assert {r.step for r in opened.recordings} == set(expected)
    for r in opened.recordings:
        assert same(r, expected[r.step])
    assert len(opened.starts) == 2


def test_a_running_run_is_left_alone(write: Write) -> None:
    with pytest.raises(RunUnreadable, match="is being written"):
        compact(write([0, 1], close=False), 10**9)


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_between_any_two_steps_leaves_a_readable_run(
    write: Write, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write(range(40))
    plain, left = os.rename, [renames]

    def rename(old: Path, new: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        plain(old, new)

    monkeypatch.setattr(os, "rename", rename)
    if renames == 2:
        monkeypatch.setattr(Path, "unlink", lambda path: rename(path, path))
    with pytest.raises(KeyboardInterrupt):
        compact(run, open_run(run).size // 2)
    monkeypatch.undo()
    opened = open_run(run)
    assert opened.steps[0] == 0
    assert opened.steps[-1] == 39
    assert all(same(r, recording(r.step)) for r in opened.recordings)
    kinds = [problem.kind for problem in opened.problems]
    assert kinds == (["compact"] if renames == 1 else [])
    compact(run, 60_000)
    again = open_run(run)
    assert again.size <= 60_000
    assert again.verify() == ()
    assert sorted(p.name for p in run.iterdir()) == ["recordings", "run.json"]


def test_files_of_others_are_kept(write: Write) -> None:
    run = write(range(10))
    (run / "recordings" / "notes.txt").write_text("mine")
    compact(run, 10**9)
    kept = list(run.rglob("notes.txt"))
    assert [path.read_text() for path in kept] == ["mine"]
    assert open_run(run).verify() == ()


def _linked(file: Path) -> None:
    shutil.move(file, file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


def test_a_file_that_is_not_read_is_never_dropped(write: Write) -> None:
    run = write(range(10))
    other = (run / "recordings") / segment_of(run).name.replace("r00000", "r00001")
    shutil.copy(segment_of(run), other)
    _linked(other)
    with pytest.raises(RunUnreadable, match=r"r00001.*\.tar cannot be read, and compacting would"):
        compact(run, 10**9)
    assert other.is_symlink()


def test_recordings_behind_a_link_stay_there(write: Write) -> None:
    run = write(range(10))
    _linked(run / "recordings")
    with pytest.raises(RunUnreadable, match="is a link, and compacting would move the recordings"):
        compact(run, 10**9)
    assert (run / "recordings").is_symlink()


def test_a_damaged_array_does_not_stop_it_and_is_never_made_whole(tmp_path: Path) -> None:
    with_matrices(tmp_path / "run")
    run = open_run(tmp_path / "run")
    (place,) = run.groups[7]
    start, size, _ = run.collector.directory(place)["loss@model.npy"]
    with open(segment_of(tmp_path / "run"), "r+b") as file:
        file.seek(place.start + start + size - 1)
        file.write(b"\xff")
    compact(tmp_path / "run", run.size - 100_000)
    found = open_run(tmp_path / "run")
    assert found.at(7).get("loss") is None
    assert found.at(7)["adjoint_norm", LAYER].values.tobytes() == (
        recording(7)["adjoint_norm", LAYER].values.tobytes()
    )
    assert "damaged when `rnndiag compact`" in found.at(7).notes["not_measured"]["loss"]


def test_a_full_disk_leaves_the_run_as_it_was(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write(range(10))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunNotWritten, match=r"\(No space left on device\); it can still be read"):
        compact(run, 10**9)
    monkeypatch.undo()
    assert sorted(p.name for p in run.iterdir()) == ["recordings", "run.json"]
    assert open_run(run).verify() == ()


def test_a_training_that_resumes_meanwhile_is_kept(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write(range(10))
    plain = os.fsync

    def resumed(descriptor: int) -> None:
        monkeypatch.undo()
        write([9, 10], resumed_from_step=8)
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", resumed)
    with pytest.raises(RunUnreadable, match="was written to while it was compacted"):
        compact(run, 10**9)
    assert open_run(run).steps.tolist() == [*range(11)]
    assert sorted(p.name for p in run.iterdir()) == ["recordings", "run.json"]


def test_only_one_process_compacts(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    run = write(range(10))
    held = os.open(run, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(RunNotWritten, match="Another process is compacting"):
        compact(run, 10**9)
    os.close(held)
    assert compact(run, 10**9).kept == 10


def test_it_is_no_recording_and_an_empty_file_stays_nothing(write: Write) -> None:
    """Compacting a run left open long ago does not make it look alive; a rank killed at its first byte is no damage."""
    run = write(range(10), close=False)
    empty = run / "recordings" / segment_of(run).name.replace("r00000", "r00001")
    empty.touch()
    for file in (run / "recordings").iterdir():
        os.utime(file, (1e9, 1e9))
    compact(run, 10**9)
    found = open_run(run)
    assert found.status.last == 1e9
    assert found.status.word == "not closed"
    assert found.verify() == ()
