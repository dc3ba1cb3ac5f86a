"""Links out of a run are not followed, and pipes in the place of files are not waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_run import writes_below

import rnndiag
from rnndiag.cli import main
from rnndiag.errors import RunNotWritten, RunUnreadable
from rnndiag.store.compact import NEW, compact
from rnndiag.store.scan import FOLDER, SET_ASIDE
from rnndiag.store.whole_files import append_text, read_regular, write_whole
from rnndiag.store.writer import RunWriter

MakeRun = Callable[..., rnndiag.Run]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@pytest.mark.parametrize("name", [FOLDER, SET_ASIDE, NEW])
def test_compact_leaves_recordings_behind_a_link_alone(tmp_path: Path, name: str) -> None:
    write = writes_below(tmp_path)
    mine, theirs = write(range(40), name="mine"), write(range(40), name="theirs")
    before = files_of(theirs)
    if name == FOLDER:
        (mine / FOLDER).rename(tmp_path / "away")
    (mine / name).symlink_to(theirs / FOLDER, target_is_directory=True)
    with pytest.raises(RunUnreadable, match="is a link"):
        compact(mine, 20_000)
    assert main(["compact", str(mine), "--max-bytes", "20k"]) == 3
    assert files_of(theirs) == before


def test_set_aside_recordings_are_not_read_through_a_link(tmp_path: Path) -> None:
    write = writes_below(tmp_path)
    theirs = write(range(10), name="theirs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / SET_ASIDE).symlink_to(theirs / FOLDER, target_is_directory=True)
    with pytest.raises(RunUnreadable, match="No rnndiag run"):
        rnndiag.open_run(tmp_path / "mine")


def test_recordings_are_not_read_through_a_link_out_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = writes_below(tmp_path)(range(10), name="theirs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / FOLDER).symlink_to(theirs / FOLDER, target_is_directory=True)
    assert main(["check", str(tmp_path / "mine")]) == 3
    told = capsys.readouterr().err
    assert "recordings is a link that leads out of the run" in told
    assert "Name the directory that the link leads to" in told


def test_recordings_are_read_through_a_link_within_the_run(tmp_path: Path) -> None:
    run = writes_below(tmp_path)(range(10), name="run")
    (run / FOLDER).rename(run / "kept")
    (run / FOLDER).symlink_to("kept", target_is_directory=True)
    assert len(rnndiag.open_run(run)) == 10


def test_a_run_is_not_written_through_a_link_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FOLDER).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(RunNotWritten, match="leads out of the run"):
        RunWriter(tmp_path / "run")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_report_replaces_a_link_and_leaves_its_target(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(count=6)
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    page = Path(run.path) / "report.html"
    page.symlink_to(mine)
    guessed = [
        Path(run.path) / f".report.html.{os.getpid()}",
        tmp_path / f".b.json.{os.getpid()}.part",
    ]
    for guess in guessed:
        guess.symlink_to(mine)
    assert main(["report", str(run.path)]) == 0
    assert main(["baseline", str(run.path), "-o", str(tmp_path / "b.json")]) == 0
    assert mine.read_text() == "mine"
    assert not page.is_symlink()
    assert page.read_text().startswith("<!doctype html>")
    assert all(guess.is_symlink() for guess in guessed)
    assert not list(tmp_path.rglob("*.part")) or all(
        p.is_symlink() for p in tmp_path.rglob("*.part")
    )


@pytest.mark.parametrize(
    "words",
    [
        ["check", "{run}", "--json", "{out}"],
        ["check", "{run}", "--junit", "{out}"],
        ["check", "{run}", "--markdown", "{out}"],
        ["report", "{run}", "-o", "{out}"],
        ["report", "{run}", "--json", "{out}"],
        ["compare", "{run}", "{run}", "-o", "{out}"],
        ["compare", "{run}", "{run}", "--json", "{out}"],
        ["export", "{run}", "--format", "csv", "-o", "{out}"],
        ["export", "{run}", "--latex", "-o", "{out}"],
        ["baseline", "{run}", "-o", "{out}"],
    ],
)
def test_no_output_follows_a_link(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # compare writes its page into the working directory
    run = make_run(count=6)
    mine, out = tmp_path / "mine.txt", tmp_path / "out"
    mine.write_text("mine")
    out.symlink_to(mine)
    assert main([word.format(run=run.path, out=out) for word in words]) == 0
    assert mine.read_text() == "mine"
    assert out.stat().st_size > 10


def test_a_step_summary_behind_a_link_is_not_appended_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=r"[Ll]ink|symbolic"):
        append_text(tmp_path / "link", "more")
    append_text(tmp_path / "new", "a")
    append_text(tmp_path / "new", "b")
    assert (tmp_path / "new").read_text() == "ab"


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    write_whole(target, "before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(target, "after")
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, "x")


@pytest.mark.parametrize("option", ["--baseline", "--config"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(
    make_run: MakeRun, tmp_path: Path, option: str
) -> None:
    run = make_run(count=6)
    os.mkfifo(tmp_path / "pipe")
    assert main(["check", str(run.path), option, str(tmp_path / "pipe")]) in (2, 3)
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(tmp_path / "pipe", 100)


def test_a_pipe_in_the_place_of_a_page_is_replaced(make_run: MakeRun) -> None:
    run = make_run(count=6)
    os.mkfifo(Path(run.path) / "report.html")
    assert main(["report", str(run.path)]) == 0
    assert (Path(run.path) / "report.html").is_file()
