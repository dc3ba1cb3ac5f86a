"""The table of promised numbers: what a benchmark tells is judged by the limit, and what is not told is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import promises, run_all
from benchmarks.promises import PROMISES, Promise, Told, read_told, tell

HERE = Path(promises.__file__).parent


def told(name: str, *values: float, whole: bool = True) -> Told:
    least, middle, most = values
    return Told(name, least, middle, most, "x", whole)


def result(*numbers: Told, status: int = 0) -> run_all.Result:
    return run_all.Result("record", "What?", "python x", 1.0, status, "said", list(numbers))


def test_a_number_is_told_with_its_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(promises.FILE, str(tmp_path / "told"))
    assert tell("recorded step, lstm", [2.0, 9.0, 2.4]) is True
    assert tell("recorded step, gru", [2.0, 2.6, 9.0], whole=False) is False
    assert tell("something else", 3.0, unit="kB") is None
    first, second, third = read_told(tmp_path / "told")
    assert (first.least, first.median, first.most, first.unit) == (2.0, 2.4, 9.0, "plain steps")
    assert not second.whole
    assert (third.median, third.unit) == (3.0, "kB")
    assert read_told(tmp_path / "nothing") == []


def test_limits_have_a_side_and_errors_are_judged_by_the_worst() -> None:
    assert Promise("a", "b", 2.0).held(2.0)
    assert not Promise("a", "b", 2.0).held(float("nan"))
    assert Promise("a", "b", 2.0, at_least=True).held(2.5)
    assert told("recorded step, lstm", 1.0, 2.0, 9.0).held
    assert not told("reach by default sampling, error", 0.0, 0.01, 0.2).held


def test_verdicts_are_true_and_a_missing_number_is_said() -> None:
    good, bad = told("recorded step, lstm", 2, 2.4, 3), told("recorded step, gru", 2, 2.6, 3)
    small = told("recorded step, rnn", 9, 9, 9, whole=False)
    words = {p.name: run_all.verdict(p, t) for p, t in run_all.promised([result(good, bad, small)])}
    assert words["recorded step, lstm"] == "HELD"
    assert words["recorded step, gru"] == "MISSED"
    assert words["recorded step, rnn"] == "small form: not judged"
    assert words["extra memory of a recorded step, lstm"] == "NOT MEASURED"
    faults = run_all.failed([result(good, bad, small)], quick=True)
    assert faults == ["recorded step, gru: MISSED"]
    assert "extra memory of a recorded step, gru: NOT MEASURED" in run_all.failed(
        [result(good)], quick=False
    )
    assert run_all.failed([result(good, status=2)], quick=True) == ["record broke down"]


def test_the_page_and_the_data_say_the_same() -> None:
    results = [result(told("recorded step, lstm", 2, 2.4, 3), told("other", 1, 1, 1))]
    text = run_all.page({"cores": "2"}, results)
    assert (
        "| recorded step, lstm | [record](#record) | ≤ 2.5 plain steps | 2 | 2.4 | 3 | HELD |"
        in text
    )
    assert "| other | [record](#record) | x | 1 | 1 | 1 |" in text
    data = json.loads(run_all.as_json({"cores": "2"}, results))
    (row,) = [p for p in data["promises"] if p["name"] == "recorded step, lstm"]
    assert (row["limit"], row["verdict"], row["told"]["median"]) == (2.5, "HELD", 2.4)


def test_every_benchmark_asks_a_question_and_every_promise_has_its_benchmark() -> None:
    scripts = {path.stem: path for path in run_all.scripts([])}
    for path in scripts.values():
        assert "?" in run_all.question(path), path.name
    for promise in PROMISES.values():
        assert promise.benchmark in scripts, promise.name
    for name in {p.benchmark for p in PROMISES.values()}:
        assert "tell(" in scripts[name].read_text(), name
    assert set(run_all.QUICK) | set(run_all.WHOLE) | set(run_all.ON_DEVICE) <= set(scripts)


def test_a_device_that_is_not_there_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run_all.require_device("cpu")
    with pytest.raises(SystemExit, match="finds no CUDA device here"):
        run_all.require_device("cuda")
