"""Opening, asking, aligning, refreshing: what a reader of runs meets."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import report_runs
from hypothesis import given
from hypothesis import strategies as st
from sample_run import LAYER, Write, recording, same, segment_of

import rnndiag
from rnndiag.cli import main
from rnndiag.errors import BadArgument, RunUnreadable
from rnndiag.run.run import open_run
from rnndiag.run.runs import open_runs
from rnndiag.store.align import align
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.status import Status, ago
from rnndiag.store.writer import RunWriter


def test_a_run_says_what_it_holds(write: Write) -> None:
    run = rnndiag.open_run(write(range(0, 50, 10), provenance={"seed": 3}))
    assert run.name == "run"
    assert run.status == "finished"
    assert run.layers == (LAYER,)
    assert run.steps.tolist() == [0, 10, 20, 30, 40]
    assert run.quantities == (
        "credit_profile",
        "adjoint_norm",
        "contribution_norm",
        "valid_samples",
        "loss",
    )
    assert run.provenance == {"seed": 3}
    assert run.problems == ()
    assert ("loss", "model") in run
    assert "reach" not in run
    assert (run.first.step, run.last.step) == (0, 40)
    assert run.last["loss"].values == 41.0
    assert run.recordings[-1].step == 40
    assert [r.step for r in run.recordings[1:3]] == [10, 20]
    assert [(r.step, r.measurements) for r in run.outlines] == [
        (s, ()) for s in (0, 10, 20, 30, 40)
    ]
    assert repr(run) == "<run run: 5 recordings, 1 layers, finished>"


def test_a_series_over_steps(write: Write) -> None:
    run = open_run(write(range(0, 50, 10)))
    series = run["contribution_norm", LAYER]
    assert series.dims == ("step", "parameter", "time")
    assert series.coordinates == {"parameter": ("weight_ih", "weight_hh")}
    assert series.lengths["time"].tolist() == [12] * 5
    picked = series.sel(parameter="weight_hh", step=20)
    assert picked.dims == ("time",)
    assert np.array_equal(picked.values, recording(20)["contribution_norm", LAYER].values[1])
    assert run.select("loss", steps=[10, 40, 99]).steps.tolist() == [10, 40]
    assert run.select("loss", steps=slice(10, 30)).steps.tolist() == [10, 20, 30]
    assert run.select("loss", steps=slice(0, None, 20)).steps.tolist() == [0, 20, 40]
    assert np.array_equal(series.positions("step"), run.steps)
    with pytest.raises(BadArgument, match="no parameter 'bias'"):
        series.sel(parameter="bias")
    with pytest.raises(BadArgument, match="no recording at step 15"):
        series.sel(step=15)
    with pytest.raises(BadArgument, match="no dim 'gate'"):
        series.sel(gate=0)


def test_wrong_questions_get_what_there_is(write: Write) -> None:
    run = open_run(write([0]))
    for ask, words in (
        (lambda: run["xyz"], "no quantity 'xyz'. It has credit_profile"),
        (lambda: run["Credit-Profil"], "Did you mean 'credit_profile'? It has credit_profile"),
        (lambda: run["loss", "modle"], "Did you mean 'model'? It has it of model."),
        (lambda: run.select("loss", rank=7), "nothing of rank 7. It has rank 0."),
        (lambda: run.select("loss", phase="trian"), "Did you mean 'train'? It has train."),
        (lambda: run.at(0, rank=3), "nothing of rank 3. It has rank 0."),
        (lambda: run.at(0, phase="val"), "no phase 'val'. It has train."),
        (lambda: run.to_frame(layer="rnn.l"), "nothing of layer 'rnn.l'. Did you mean 'rnn.l0'?"),
        (lambda: run.last["los"], "Did you mean 'loss'?"),
        (
            lambda: run["credit_profile", "rnn.l7"],
            "of layer 'rnn.l7'. Did you mean 'rnn.l0'? It has it",
        ),
        (lambda: run.select("loss", steps=[3]), "no readable 'loss'"),
        (lambda: run.at(7), "no recording of step 7 in phase 'train'. It has steps 0"),
        (lambda: run.last["gate_low", LAYER], "no 'gate_low' of 'rnn.l0'"),
    ):
        with pytest.raises(RunUnreadable) as fault:
            ask()
        assert words in str(fault.value)


def test_wrong_arguments_are_told(write: Write) -> None:
    run = open_run(write([0]))
    for ask, words in (
        (lambda: run.reach(90), "The share 90 of the credit is not a number above 0"),
        (lambda: run.reach(LAYER), "name a layer by layer="),  # type: ignore[arg-type]
        (lambda: run["credit_profile"].sel(lag=99), "no lag 99. It has 12 of them, from 0."),
        (lambda: run.select("loss", steps=slice(0, 9, 0)), "by a slice with stride 0"),
    ):
        with pytest.raises(BadArgument) as fault:
            ask()
        assert words in str(fault.value)


def test_a_run_without_recordings_says_so(write: Write) -> None:
    run = open_run(write([]))
    for ask in (run.reach, run.window, lambda: run["loss"], lambda: run.last):
        with pytest.raises(RunUnreadable, match=r"run holds no recordings\. The training stopped"):
            ask()
    assert list(run) == []


def test_a_run_is_its_recordings_in_a_loop(write: Write) -> None:
    run = open_run(write([0, 10]))
    assert [r.step for r in run] == [0, 10]
    assert run.select("loss", steps=10).steps.tolist() == [10]
    assert run.select("loss", steps=run.steps[1]).steps.tolist() == [10]


def test_a_rank_that_lacks_a_step(write: Write) -> None:
    write([0, 10], world_size=2)
    run = open_run(write([0], rank=1, world_size=2))
    with pytest.raises(RunUnreadable, match=r"no recording of step 10 by rank 1\. Rank 0 recorded"):
        run.at(10, rank=1)


def test_where_there_is_no_run(tmp_path: Path, write: Write) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        RunUnreadable, match=r"No rnndiag run in .*empty \(expected recordings/r\*\.tar\)"
    ):
        open_run(tmp_path / "empty")
    with pytest.raises(RunUnreadable, match="There is no directory"):
        open_run(tmp_path / "nowhere")
    run = write([0])
    with pytest.raises(RunUnreadable, match="Runs are in it: run"):
        open_run(tmp_path)
    with pytest.raises(RunUnreadable, match="give the folder above it"):
        open_run(run / "recordings")


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b"])
def test_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(RunUnreadable, match=r"cannot be read \(.*\)\. Give a directory"):
        open_run(path)


def test_a_directory_that_may_not_be_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    path = write([0])
    monkeypatch.setattr(os, "listdir", forbidden)
    with pytest.raises(RunUnreadable, match=r"run cannot be read \(Permission denied\)"):
        open_run(path)


def test_a_file_is_no_run(write: Write) -> None:
    path = write([0])
    for file in (segment_of(path), path / "run.json"):
        with pytest.raises(RunUnreadable, match="It is a file: give the run's directory"):
            open_run(file)


def test_a_relative_path_stays_where_it_was(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher that changes the working directory moves neither the reader nor the writer."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rnndiag.store.limits.SEGMENT_RECORDINGS", 1)
    with RunWriter("run") as writer:
        writer.append(recording(0))
        run = open_run("run")
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert writer.append(recording(1))
    assert run.refresh() == 1
    assert run.status == "finished"
    assert '"end"' in (tmp_path / "run" / "run.json").read_text()


def test_lengths_that_differ_are_padded_never_cut(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        for step, lags in enumerate((3, 5, 2)):
            values = np.arange(lags) + 10 * step
            writer.append(
                Recording(step, measurements=(Measurement.of("valid_samples", values, LAYER),))
            )
    series = open_run(tmp_path / "run")["valid_samples", LAYER]
    nan = np.nan
    expected = [[0, 1, 2, nan, nan], [10, 11, 12, 13, 14], [20, 21, nan, nan, nan]]
    assert np.array_equal(series.values, expected, equal_nan=True)
    assert series.lengths["time"].tolist() == [3, 5, 2]
    assert series.valid(2).values.tolist() == [20, 21]


def test_labels_are_matched_not_positions() -> None:
    def m(labels: str, *values: float) -> Measurement:
        return Measurement(
            "q", np.array(values), ("parameter",), coordinates={"parameter": tuple(labels)}
        )

    found = align([m("ab", 1, 2), m("ba", 20, 10), m("bc", 200, 300)])
    assert found.coordinates == {"parameter": ("a", "b", "c")}
    nan = np.nan
    assert np.array_equal(
        found.values, [[1, 2, nan], [10, 20, nan], [nan, 200, 300]], equal_nan=True
    )
    assert found.valid is not None
    assert found.valid.tolist() == [[True, True, False], [True, True, False], [False, True, True]]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=5))
def test_aligned_arrays_are_found_again(shapes: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    found = align([Measurement("q", a, ("x", "y")) for a in arrays])
    for row, a in enumerate(arrays):
        x, y = a.shape
        assert np.array_equal(found.values[row, :x, :y], a)
        rest = found.values[row].copy()
        rest[:x, :y] = np.nan
        assert np.isnan(rest).all()
        assert (found.lengths["x"][row], found.lengths["y"][row]) == a.shape
    assert found.values.shape[1:] == tuple(np.max(shapes, axis=0))


def test_changed_dims_are_told(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        for step, dims in enumerate((("a",), ("b",))):
            writer.append(Recording(step, measurements=(Measurement("q", np.zeros(2), dims),)))
    with pytest.raises(RunUnreadable, match=r"dims .* in one recording"):
        open_run(tmp_path / "run")["q"]


def test_without_a_layer_all_layers(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        for step in (0, 10, 20):
            layers = {"a": 3, "b": 2} if step else {"a": 3}
            made = [Measurement.of("window_bias", np.full(n, step), of) for of, n in layers.items()]
            writer.append(Recording(step, measurements=tuple(made)))
    series = open_run(tmp_path / "run")["window_bias"]
    assert series.dims == ("layer", "step", "lag")
    assert series.coordinates["layer"] == ("a", "b")
    assert np.isnan(series.values[1, 0]).all()
    assert series.values[1, 1, :2].tolist() == [10, 10]
    assert series.lengths["lag"].tolist() == [[3, 3, 3], [0, 2, 2]]
    assert series.sel(layer="b", step=20).values[:2].tolist() == [20, 20]


def test_refresh_reads_what_is_new(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert (len(run), run.status.word, run.refresh()) == (0, "running", 0)
    with pytest.raises(RunUnreadable, match="holds no recordings"):
        run.last
    for step in range(3):
        writer.append(recording(step))
        assert run.refresh() == 1
        assert run.last.step == step
        assert run["loss"].values.tolist() == [1.0 + s for s in range(step + 1)]
    writer.close("max_steps reached")
    assert run.refresh() == 0
    assert (run.status, run.status.reason) == ("finished", "max_steps reached")
    write_more = RunWriter(tmp_path / "run", resumed_from_step=1)
    write_more.append(recording(2, epoch=9))
    assert run.refresh() == 1
    assert run.last.epoch == 9
    assert same(run.last, recording(2))


def test_refresh_reads_new_bytes_only(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from rnndiag.store.source import LocalFile

    run = open_run(write(range(50), close=False))
    read: list[int] = []
    plain = LocalFile.read

    def counted(self: LocalFile, start: int, size: int) -> bytes:
        read.append(start)
        return plain(self, start, size)

    monkeypatch.setattr(LocalFile, "read", counted)
    assert run.refresh() == 0
    assert len(read) <= 1


def test_status_of_a_run_that_nobody_writes(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write([0, 1], close=False)
    assert open_run(path).status == "running"
    monkeypatch.setattr("rnndiag.store.status.is_alive", lambda process: False)
    past = time.time() - 3 * 3600 - 60
    os.utime(segment_of(path), (past, past))
    status = open_run(path).status
    assert status == "not closed, last recording 3 h ago"
    assert isinstance(status, Status)
    assert (status.word, round(status.last)) == ("not closed", round(past))
    ahead = time.time() + 7200
    os.utime(segment_of(path), (ahead, ahead))
    assert open_run(path).status == "not closed, last recording 0 s ago"
    os.utime(segment_of(path), (past, past))
    monkeypatch.setattr("rnndiag.store.status.is_alive", lambda process: None)
    assert open_run(path).status.word == "not closed"
    os.utime(segment_of(path))
    assert open_run(path).status == "running"


def test_stretches_of_time_in_words() -> None:
    words = [ago(s) for s in (-1, 0, 59, 119, 120, 7199, 7200, 90_000, 172_800, 1e7)]
    assert words == [
        "0 s",
        "0 s",
        "59 s",
        "119 s",
        "2 min",
        "119 min",
        "2 h",
        "25 h",
        "2 days",
        "115 days",
    ]


def test_many_runs_at_once(write: Write, tmp_path: Path) -> None:
    for name in ("logs/a", "logs/deep/b"):
        write([0, 10], name=name)
    broken = tmp_path / "logs/c/recordings"
    broken.mkdir(parents=True)
    (broken / "r00000-s000-00000000-0000.tar").write_bytes(b"x" * 9999)
    runs = open_runs(tmp_path / "logs/**")
    assert [run.name for run in runs] == ["a", "b"]
    assert runs.names == ("a", "deep/b")
    assert "open.json is unreadable" in runs.unreadable[0]
    frame = runs.to_frame("loss")
    assert list(frame.columns) == ["run", "step", "phase", "quantity", "layer", "value"]
    assert frame.run.tolist() == ["a", "a", "deep/b", "deep/b"]
    assert [run.name for run in open_runs(tmp_path / "logs")] == ["a"]
    with pytest.raises(RunUnreadable, match="No rnndiag run matches"):
        open_runs(tmp_path / "nothing/**")


def test_many_runs_do_not_need_as_many_open_files(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnndiag.store.source.LocalFile._MOST_OPEN", 3)
    for n in range(12):
        write([0, 10], name=f"logs/{n:02d}", close=False)
    before = len(os.listdir("/proc/self/fd"))
    runs = open_runs(tmp_path / "logs/*")
    assert [run["loss"].values.tolist() for run in runs] == [[1.0, 11.0]] * 12
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert [run.refresh() for run in runs] == [0] * 12
    file = segment_of(tmp_path / "logs" / "00")
    other = file.with_suffix(".new")
    other.write_bytes(file.read_bytes())
    other.replace(file)
    assert list(runs[0].recordings) == []
    assert "replaced since the run was opened" in str(runs[0].problems[-1])


def test_remote_paths_go_through_fsspec(write: Write) -> None:
    fsspec = pytest.importorskip("fsspec")
    path = write([0, 10])
    memory = fsspec.filesystem("memory")
    memory.put(str(path), "/bucket/run", recursive=True)
    run = open_run("memory://bucket/run")
    assert run.steps.tolist() == [0, 10]
    assert run["loss"].values.tolist() == [1.0, 11.0]
    assert (run.name, run.refresh(), run.verify()) == ("run", 0, ())
    with pytest.raises(RunUnreadable, match="There is no directory memory://"):
        open_run("memory://bucket/nothing")
    with pytest.raises(RunUnreadable, match="cannot be opened"):
        open_run("nosuchprotocol://x")


def test_a_run_in_object_storage_is_read_while_it_is_written(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory, url = fsspec.filesystem("memory"), "memory://growing/run"

    def upload() -> None:
        memory.put(f"{tmp_path}/run/", "/growing/run/", recursive=True)

    writer = report_runs.RunWriter(tmp_path / "run", report_runs.FACTS, durable=False)
    try:
        for steps in ((0, 10), (20,)):
            for step in steps:
                found = report_runs.layer_content(LAYER, step, 6)
                writer.append(Recording(step, verdict="exact", measurements=tuple(found)))
            upload()
            if steps[0] == 0:
                run = open_run(url)
                assert (run.steps.tolist(), run.status.word) == ([0, 10], "running")
        assert run.refresh() == 1
        assert run.steps.tolist() == [0, 10, 20]
        page = tmp_path / "page.html"
        assert main(["report", url, "-o", str(page)]) == 0
        assert "Training is still running" in page.read_text(encoding="utf-8")
        assert main(["report", url]) == 2  # a page is not written behind a URL
    finally:
        writer.close()


def test_without_fsspec_remote_paths_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(rnndiag.errors.NotInstalled, match="needs fsspec"):
        open_run("s3://bucket/run")
