"""The story of the lectures: its tables can be made, its page is the one that the command writes, its claims hold."""

import pytest

from lightning_modules.experiments import clipping, lectures, long_gap, truncations

QUICK = {"batches": 3, "batch_size": 8}


@pytest.fixture
def quick(monkeypatch):
    for module in (long_gap, clipping, truncations):
        monkeypatch.setattr(module, "DATA", QUICK)


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_the_page_carries_the_commands_words():
    page = lectures.PAGE.read_text(encoding="utf-8")
    assert lectures.OPENING in page
    for chapter in lectures.CHAPTERS:
        assert chapter.heading in page
        assert chapter.text.strip() in page
    for name in (*long_gap.SYSTEMS, *(one.label for one in truncations.TRUNCATIONS)):
        assert f"| {name} |" in page


def test_clipping_scales_every_lag_alike():
    for norm in (0.1, 0.001):
        factors = clipping.shares(norm)
        assert factors[0] < 1
        assert factors == pytest.approx([factors[0]] * len(factors), rel=1e-3)
    assert clipping.shares(None) == [1.0] * len(clipping.LAGS)


@pytest.mark.usefixtures("quick")
def test_the_start_tells_which_nets_reach_across_the_gap(tmp_path, monkeypatch):
    names = ("tanh RNN", "LSTM, forget bias 3")
    monkeypatch.setattr(long_gap, "SYSTEMS", {name: long_gap.SYSTEMS[name] for name in names})
    fitted = long_gap.train(tmp_path)
    assert long_gap.reach_at(fitted["tanh RNN"], 0) < 10
    assert long_gap.reach_at(fitted["LSTM, forget bias 3"], 0) > 20
    assert long_gap.crossing(fitted["tanh RNN"], 0) < -3 < long_gap.crossing(fitted[names[1]], 0)
    table = rows(long_gap.report(fitted))
    assert [row[0] for row in table[2:]] == list(names)


@pytest.mark.usefixtures("quick")
def test_the_tables_of_clipping_and_truncations_can_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr(clipping, "NORMS", (None, 0.1))
    monkeypatch.setattr(truncations, "TRUNCATIONS", truncations.TRUNCATIONS[::4])
    clipped = rows(clipping.report(clipping.train(tmp_path)))
    assert [row[0] for row in clipped[2:]] == ["off", "norm 0.1"]
    scored = rows(truncations.report(truncations.train(tmp_path)))
    assert scored[2][:3] == ["full BPTT", "0.000", "0.00"]
    assert 0 < float(scored[3][1]) < 1.5
