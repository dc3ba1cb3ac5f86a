"""Every figure of every edge case, as data: against committed JSON, and for what must hold in all of them.

After a change that is meant: RNNDIAG_GOLDEN=write python -m pytest tests/report/test_golden_figures.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_runs

from reports.figure_json import figure_json
from rnndiag.report.context import Context
from rnndiag.report.figures import FIGURES, ORDER
from rnndiag.report.write_report import report_context
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import QUANTITIES

GOLDEN = Path(__file__).parent / "golden"
CASES = (
    "full",
    "one_step",
    "one_recording",
    "not_finite",
    "zeros",
    "nothing",
    "missing",
    "many_to_one",
)


@cache
def golden(case: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / f"{case}.json").read_text(encoding="utf-8"))
    return content


def keep(case: str, name: str, found: dict[str, Any]) -> None:
    """Write one figure into a case's file."""
    file = GOLDEN / f"{case}.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    content[name] = found
    lines = [
        f"{json.dumps(key)}: {json.dumps(content[key], ensure_ascii=False, separators=(',', ':'))}"
        for key in ORDER
        if key in content
    ]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


@pytest.mark.parametrize("name", ORDER)
@pytest.mark.parametrize("case", CASES)
def test_figure_is_as_committed(case: str, name: str, context_of: Callable[[str], Context]) -> None:
    found = json.loads(json.dumps(figure_json(FIGURES[name].make(context_of(case)))))
    if os.environ.get("RNNDIAG_GOLDEN") == "write":
        keep(case, name, found)
    assert near(found, golden(case)[name])


def near(one: Any, other: Any) -> bool:
    """Equal but for rounding of the last kept digit."""
    if isinstance(one, float | int) and isinstance(other, float | int):
        return bool(np.isclose(one, other, rtol=2e-3, atol=1e-12))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(near, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    return bool(one == other)


@pytest.mark.parametrize("case", CASES)
def test_a_figure_shows_something_or_says_why_not(
    case: str, context_of: Callable[[str], Context]
) -> None:
    for name in ORDER:
        data = FIGURES[name].make(context_of(case))
        if data.absent:
            assert data.absent.endswith("."), data.absent
            assert not data.panels
            continue
        assert data.finding.endswith("."), data.finding
        assert data.how_to_read
        for panel in data.panels:
            drawn = [*panel.lines, *panel.bands, *panel.dots, *panel.bubbles, *panel.matrices]
            assert drawn or panel.notes, f"{case} {name} {panel.title}: empty axes"
            assert np.isfinite([panel.x.low, panel.x.high, panel.y.low, panel.y.high]).all()
            assert panel.x.low < panel.x.high
            assert panel.y.low < panel.y.high
        assert "nan" not in data.finding.split(), data.finding


def test_nothing_recorded_is_one_sentence_everywhere(
    context_of: Callable[[str], Context],
) -> None:
    said = {FIGURES[name].make(context_of("nothing")).absent for name in ORDER}
    assert said == {"No recordings: training stopped before the first recording step."}


def test_what_was_not_measured_says_why(context_of: Callable[[str], Context]) -> None:
    context = context_of("missing")
    assert FIGURES["F8"].make(context).absent == "Not measured: switched off."
    absent = FIGURES["F1"].make(context).absent
    assert absent == f"Not recorded in this run: {QUANTITIES['credit_profile'].meaning}"


def test_many_to_one_is_told_and_not_drawn_as_an_empty_square(
    context_of: Callable[[str], Context],
) -> None:
    absent = FIGURES["F3"].make(context_of("many_to_one")).absent
    assert absent.startswith("Only one output of encoder.l0 carries a loss, that at step 11")
    assert absent.endswith("It reaches back to step 0.")


def test_a_step_that_is_not_finite_is_named_and_magenta(
    context_of: Callable[[str], Context],
) -> None:
    context = context_of("not_finite")
    over = FIGURES["F2"].make(context)
    assert over.warnings == ("Not finite at step 10.",)
    assert np.isposinf(over.panels[0].matrices[0].values[:, 1]).all()
    assert np.isnan(over.panels[0].lines[0].y[1])
    credit = FIGURES["F3"].make(context)
    assert credit.warnings == ("Not finite at step 10.",)


def test_exact_zeros_are_cut_and_named(context_of: Callable[[str], Context]) -> None:
    panel = FIGURES["F1"].make(context_of("zeros")).panels[0]
    assert panel.notes == ("exactly zero from lag 5",)
    assert np.isnan(panel.lines[0].y[5:]).all()
    assert np.isfinite(panel.lines[0].y[:5]).all()


def test_after_a_blow_up_the_last_good_profile_is_shown_and_said_so(tmp_path: Path) -> None:
    def edit(m: Measurement, step: int) -> Measurement:
        return (
            replace(m, values=m.values * np.nan) if step >= 20 and m.name == "credit_profile" else m
        )

    context = report_context(report_runs.write(tmp_path / "run", (0, 10, 20, 30), 6, edit=edit))
    data = FIGURES["F1"].make(context)
    assert data.warnings == ("Not finite at step 30, 20: an older one is shown.",)
    assert data.panels[0].lines[0].y[1] == pytest.approx(report_runs.decay(context.lead, 10))
