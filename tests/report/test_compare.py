"""Two runs on one page: the words, the curves and the map, against the numbers that the runs were made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_runs

from rnndiag.cli import main
from rnndiag.errors import BadArgument
from rnndiag.report.compare_page import comparable, compare_page, compared_figures, heading
from rnndiag.report.context import Context
from rnndiag.report.deltas import deltas, what_differs
from rnndiag.report.write_report import report_context
from rnndiag.store.measurement import Measurement

STEPS, T = (0, 10, 20), 12
CONFIG = {"checks": {"reach": {"max": 9.0}}}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.write(tmp_path_factory.mktemp("a") / "first", STEPS, T)


def scaled(folder: Path, factor: float, steps: tuple[int, ...] = STEPS) -> Path:
    """The same run, its profile's logarithm times a factor: decay a becomes a ** factor."""

    def edit(m: Measurement, step: int) -> Measurement:
        return replace(m, values=m.values * factor) if m.name == "credit_profile" else m

    return report_runs.write(folder, steps, T, edit=edit)


def both(first: Path, second: Path, layer: str = "") -> list[Context]:
    return comparable([report_context(first), report_context(second)], layer)


def word_of(contexts: list[Context], check: str, layer: str) -> str:
    return next(
        d.word for d in deltas(contexts, ["a", "b"]) if (d.check, d.layer) == (check, layer)
    )


def test_the_same_run_is_identical(first: Path) -> None:
    found = deltas(both(first, first), ["a", "b"])
    assert len(found) > 8
    assert {d.word for d in found} == {"identical"}
    assert heading(found)[1] == "IDENTICAL"


def test_a_little_is_within_noise_and_much_is_shifted(first: Path, tmp_path: Path) -> None:
    near = both(first, scaled(tmp_path / "near", 1.05))
    assert word_of(near, "reach", "encoder.l1") == "within noise"
    far = both(first, scaled(tmp_path / "far", 2.0))
    assert word_of(far, "reach", "encoder.l1") == "shifted"
    kind, word, sentence = heading(deltas(far, ["a", "b"]))
    assert (kind, word) == ("fault", "SHIFTED")
    assert "went from" in sentence


def test_beyond_the_configured_bounds_is_out_of_bounds(first: Path, tmp_path: Path) -> None:
    longer = scaled(tmp_path / "longer", 0.2)
    contexts = comparable([report_context(p, config=CONFIG) for p in (first, longer)])
    assert word_of(contexts, "reach", "encoder.l1") == "out of bounds"


def test_the_map_is_the_logarithm_of_the_ratio(first: Path, tmp_path: Path) -> None:
    contexts = both(first, scaled(tmp_path / "second", 1.5), "encoder.l0")
    data = compared_figures(contexts)[1]
    a = [report_runs.decay("encoder.l0", s) for s in STEPS]
    expected = [[0.5 * d * np.log10(x) for x in a] for d in range(T)]
    (matrix,) = data.panels[0].matrices
    assert matrix.values == pytest.approx(np.array(expected), abs=1e-6)
    assert matrix.diverging
    assert -matrix.low == matrix.high >= np.abs(expected).max()
    assert "second differs most at lag 11" in data.finding
    assert "times less credit" in data.finding


def test_without_common_steps_columns_are_shares_of_training(first: Path, tmp_path: Path) -> None:
    contexts = both(first, scaled(tmp_path / "second", 1.0, (5, 15, 25)))
    data = compared_figures(contexts)[1]
    assert data.panels[0].x.names == ("0%", "50%", "100%")
    assert "shares of each training" in data.how_to_read


def test_curves_lie_over_each_other(first: Path, tmp_path: Path) -> None:
    contexts = both(first, scaled(tmp_path / "second", 1.5), "encoder.l0")
    reach, _, _, health = compared_figures(contexts)
    a = report_runs.decay("encoder.l0", 20)
    one, other = reach.panels[0].lines
    assert one.y == pytest.approx([a**d for d in range(T)], rel=1e-5)
    assert other.y == pytest.approx([a ** (1.5 * d) for d in range(T)], rel=1e-5)
    assert {line.tone for line in (one, other)} == {"main", "second"}
    assert reach.panels[0].y.low <= other.y.min()
    assert len(health.panels) > 5


def test_a_run_that_lacks_a_figure_is_named(first: Path, made: Callable[[str], Path]) -> None:
    contexts = both(first, made("missing"))
    assert any(
        w.startswith("missing: Not recorded") for w in compared_figures(contexts)[0].warnings
    )


def test_what_makes_runs_incomparable_is_listed(first: Path, tmp_path: Path) -> None:
    other = report_runs.write(tmp_path / "longer", STEPS, 2 * T)
    differs = what_differs(both(first, other), ["first", "longer"])
    assert ("T.encoder.l0", "12", "longer", "24") in differs
    assert "These runs are not of one program" in compare_page(both(first, other))


def test_runs_without_a_common_layer_are_refused(first: Path, tmp_path: Path) -> None:
    other = report_runs.write(tmp_path / "other", STEPS, T, layers=("decoder",))
    with pytest.raises(BadArgument, match="no recurrent layer in common"):
        both(first, other)
    with pytest.raises(BadArgument, match="cannot be compared"):
        comparable([report_context(first)])


def test_the_command_says_the_word_and_writes_the_table(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second, page = scaled(tmp_path / "second", 2.0), tmp_path / "c.html"
    words = [
        "compare",
        str(first),
        str(second),
        "-o",
        str(page),
        "--json",
        str(tmp_path / "c.json"),
    ]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("SHIFTED  ")
    rows = json.loads((tmp_path / "c.json").read_text())
    assert {row["word"] for row in rows} <= {"identical", "within noise", "shifted"}
    assert all(row["run"] == "second" for row in rows)
    assert page.read_text(encoding="utf-8") == compare_page(both(first, second))
