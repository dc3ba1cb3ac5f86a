"""`rnndiag runs` lists runs and writes an index; `rnndiag report --watch` follows a run until it is over."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from sample_run import Write, recording

from rnndiag.cli import main
from rnndiag.cli import report as report_command
from rnndiag.cli.runs import table
from rnndiag.report.run_list import SORT_KEYS, RunRow, sorted_rows, write_index
from rnndiag.store.writer import RunWriter

Screen = pytest.CaptureFixture[str]


def row(
    name: str, reach: float = 1.0, loss: float = 1.0, step: int = 1, written: float = 0.0
) -> RunRow:
    return RunRow(name, name, "finished", f"H {name}", reach, loss, 1, step, written)


def test_every_run_of_a_folder_has_one_line(write: Write, tmp_path: Path, capsys: Screen) -> None:
    write(range(0, 50, 10), name="first")
    write(range(0, 100, 10), name="second", close=False)
    assert main(["runs", str(tmp_path), "--sort", "name"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "first", "second"]
    assert "finished" in lines[1]
    assert re.search(r"\b41\b", lines[1])  # the loss of step 40: 1 + 40
    assert re.search(r"\b91\b", lines[2])


def test_the_rows_as_json_hold_what_the_table_shows(
    write: Write, tmp_path: Path, capsys: Screen
) -> None:
    write(range(0, 50, 10), name="one")
    assert main(["runs", str(tmp_path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["name"] == "one"
    assert (found["recordings"], found["step"], found["loss"]) == (5, 40, 41.0)
    assert found["reach"] > 1


@pytest.mark.parametrize("column", SORT_KEYS)
def test_rows_can_be_sorted_by_every_column_and_back(column: str) -> None:
    rows = [
        row("b", math.nan, 2.0, 5, 3.0),
        row("a", 4.0, math.nan, 9, 1.0),
        row("c", 2.0, 1.0, 7, 2.0),
    ]
    there = sorted_rows(rows, column)
    assert there == sorted(rows, key=SORT_KEYS[column])
    backwards = [SORT_KEYS[column](one) for one in sorted_rows(rows, column, reverse=True)]
    assert backwards == [SORT_KEYS[column](one) for one in there[::-1]]
    first = {"name": "a", "reach": "c", "loss": "c", "steps": "a", "age": "b"}.get(column)
    assert first is None or there[0].name == first


def test_an_unknown_column_is_a_usage_error_that_names_the_columns(
    write: Write, tmp_path: Path, capsys: Screen
) -> None:
    write(name="one")
    assert main(["runs", str(tmp_path), "--sort", "beauty"]) == 2
    assert "Use one of name, status" in capsys.readouterr().err


def test_a_folder_without_runs_exits_with_3(tmp_path: Path, capsys: Screen) -> None:
    assert main(["runs", str(tmp_path)]) == 3
    assert "No rnndiag run" in capsys.readouterr().err


def test_a_long_headline_is_cut_to_the_terminal() -> None:
    lines = table([row("x" * 10)], width=60, now=10.0)
    long = table([RunRow("r", "r", "finished", "word " * 60, 1, 1, 1, 1, 0)], width=90, now=10.0)
    assert lines[1].endswith("H xxxxxxxxxx")
    assert len(long[1]) <= 90
    assert long[1].endswith("…")


def test_the_index_links_the_reports_that_exist_and_escapes_names(tmp_path: Path) -> None:
    there, bare = tmp_path / "a & b", tmp_path / "<i>"
    for folder in (there, bare):
        folder.mkdir()
    (there / "report.html").write_text("x")
    rows = [RunRow(p.name, str(p), "running", "<b>", 1.0, 2.0, 3, 4, 0.0) for p in (there, bare)]
    text = write_index(rows, tmp_path / "index.html", now=60.0).read_text()
    assert '<a href="a &amp; b/report.html">a &amp; b</a>' in text
    assert "<i>" not in text
    assert "<b>" not in text
    assert text.count("report.html") == 1
    assert "60 s ago" in text


def test_watch_writes_the_page_anew_as_the_run_grows_and_stops_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Screen
) -> None:
    writer = RunWriter(tmp_path / "run", durable=False)
    writer.append(recording(0))
    page, seen = tmp_path / "run" / "report.html", []

    def pause(seconds: float) -> None:
        """In place of waiting: look at the page, then let the fit go on by one recording, or end."""
        seen.append(page.read_text())
        if len(seen) < 3:
            writer.append(recording(10 * len(seen)))
        else:
            writer.close()

    monkeypatch.setattr(report_command.time, "sleep", pause)
    assert main(["report", str(tmp_path / "run"), "--watch", "--every", "4"]) == 0
    counts = [re.search(r"(\d+) recordings?", text) for text in seen]
    assert [found and found[1] for found in counts] == ["1", "2", "3"]
    for text in seen:
        assert '<meta http-equiv="refresh" content="4">' in text
        assert "loads itself again every 4 s" in text
    last = page.read_text()
    assert "refresh" not in last
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_watch_refuses_to_look_without_pause(write: Write, tmp_path: Path, capsys: Screen) -> None:
    assert main(["report", str(write()), "--watch", "--every", "0"]) == 2
    assert "no time to wait" in capsys.readouterr().err


def test_a_misspelt_option_is_answered_with_the_nearest(write: Write, capsys: Screen) -> None:
    assert main(["report", str(write()), "--outptu", "x"]) == 2
    assert "Did you mean '--output'?" in capsys.readouterr().err
