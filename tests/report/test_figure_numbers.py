"""Figures against the formulas that the run was made from: decay a per step, so credit a^d at lag d."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_runs
from report_runs import LAYERS, decay

from rnndiag.report.context import Context
from rnndiag.report.figure_data import FigureData
from rnndiag.report.figures import FIGURES
from rnndiag.report.write_report import report_context
from rnndiag.store.measurement import Measurement

T = 12


def make(name: str, context: Context) -> FigureData:
    return FIGURES[name].make(context)


def reach_of_decay(a: float, share: float = 0.9) -> float:
    """Where the piecewise linear cumulative sum of a^d over d < T crosses `share`, by plain counting."""
    total, before = sum(a**d for d in range(T)), 0.0
    for d in range(T):
        if before + a**d >= share * total:
            return d + (share * total - before) / a**d
        before += a**d
    raise AssertionError


def test_reach_draws_the_profile_and_says_the_reach(context_of: Callable[[str], Context]) -> None:
    context = context_of("full")
    data = make("F1", context)
    a = decay(context.lead, 20)
    line = data.panels[0].lines[0]
    assert line.y == pytest.approx([a**d for d in range(T)], rel=1e-5)
    expected = np.median([reach_of_decay(decay(context.lead, s)) for s in (0, 10, 20)])
    (mark,) = [m for m in data.panels[0].marks if m.label.startswith("reach")]
    assert mark.at == pytest.approx(expected, rel=1e-4)
    assert f"within {expected:.3g} of {T} steps" in data.finding


def test_reach_of_a_layer_in_chunks_is_that_of_the_call_that_the_loss_reads(tmp_path: Path) -> None:
    def first_without_credit(m: Measurement, step: int) -> Measurement:
        if m.name != "credit_profile" or m.layer != "rnn.l0":
            return m
        return replace(m, values=np.full(m.values.shape, -np.inf))

    layers = ("rnn.l0", "rnn.l0#2")
    folder = report_runs.write(tmp_path / "r", (0, 10), T, layers, first_without_credit)
    context = replace(report_context(folder), chosen="rnn.l0")
    data = make("F1", context)
    assert data.layer == "rnn.l0#2"
    assert "within" in data.finding


def test_over_training_has_a_column_for_each_step(context_of: Callable[[str], Context]) -> None:
    context = context_of("full")
    panel = make("F2", context).panels[0]
    expected = [[d * np.log10(decay(context.lead, s)) for s in (0, 10, 20)] for d in range(T)]
    assert panel.matrices[0].values == pytest.approx(np.array(expected), abs=1e-6)
    assert (panel.x.low, panel.x.high) == (-5, 25)
    assert panel.lines[0].y == pytest.approx(
        [reach_of_decay(decay(context.lead, s)) for s in (0, 10, 20)], rel=1e-4
    )


def test_uneven_steps_stand_side_by_side_under_their_names(tmp_path: Path) -> None:
    context = report_context(report_runs.write(tmp_path / "run", (0, 1, 10, 100), T))
    panel = make("F2", context).panels[0]
    assert panel.x.names == ("0", "1", "10", "100")
    assert panel.lines[0].x.tolist() == [0, 1, 2, 3]


def test_credit_matrix_has_the_credit_of_every_pair(context_of: Callable[[str], Context]) -> None:
    context = context_of("full")
    matrices = make("F3", context).panels[0].matrices
    assert [m.frame for m in matrices] == ["step 0", "step 10", "step 20"]
    a = decay(context.lead, 20)
    for u in range(T):
        for s in range(T):
            value = matrices[-1].values[u, s]
            assert np.isnan(value) if s > u else value == pytest.approx((u - s) * np.log10(a))


def test_contributions_are_drawn_per_parameter_and_gate(
    context_of: Callable[[str], Context],
) -> None:
    context = context_of("full")
    parameters, gates, parts, alignment = make("F4", context).panels
    a = decay(context.lead, 20)
    assert [line.label for line in parameters.lines] == list(report_runs.PARAMETERS)
    assert parameters.lines[1].y == pytest.approx([2 * a ** (T - 1 - t) for t in range(T)])
    assert [line.label for line in gates.lines] == ["i", "f", "g", "o"]
    assert [line.label for line in parts.lines] == ["h", "c"]
    assert alignment.lines[0].y == pytest.approx([np.cos(t / 5) for t in range(T)], abs=1e-6)


def test_products_fall_as_their_factor(context_of: Callable[[str], Context]) -> None:
    context = context_of("full")
    data = make("F5", context)
    a = decay(context.lead, 20)
    assert data.panels[0].lines[0].y == pytest.approx([a**d for d in range(1, T)], rel=1e-5)
    assert f"×{a:.3g} a step" in data.finding


def test_truncation_marks_the_smallest_window_within_ten_percent(
    context_of: Callable[[str], Context],
) -> None:
    context = context_of("full")
    biases = np.median([[decay(context.lead, s) ** d for d in range(T)] for s in (0, 10, 20)], 0)
    data = make("F6", context)
    window = data.panels[0].lines[0]
    assert window.y[: T - 1] == pytest.approx(biases[1:], rel=1e-4)
    labels = [mark.label for mark in data.panels[0].marks]
    assert "in use: 8" in labels
    assert f"your 8 is off by {100 * biases[8]:.0f} %, all of it systematic" in data.finding


def test_windows_with_gaps_stand_at_their_own_place(tmp_path: Path) -> None:
    kept = [0, 1, 2, 4, 8, 12]

    def edit(m: Measurement, step: int) -> Measurement:
        if "lag" not in m.coordinates or m.coordinates["lag"][0] != "0":
            return m
        return replace(m, values=m.values[kept], coordinates={"lag": tuple(map(str, kept))})

    context = report_context(report_runs.write(tmp_path / "run", (0, 10, 20), T, edit=edit))
    data = make("F6", context)
    assert data.panels[0].lines[0].x.tolist() == kept[1:]
    assert [row[0] for row in data.table.rows] == ["1", "2", "4", "8", "12"]  # type: ignore[union-attr]


def test_estimators_are_sorted_by_their_ranking(context_of: Callable[[str], Context]) -> None:
    data = make("F7", context_of("full"))
    assert data.table is not None
    assert [row[0] for row in data.table.rows] == [
        "window(4)",
        "full",
        "chunk(4)",
        "bernoulli(0.9)",
    ]
    # the first of the table has a bias above 10 %, so the next one is recommended
    assert "full gives the least error for its cost" in data.finding


def test_no_estimator_with_a_bias_above_ten_percent_is_recommended(
    tmp_path: Path,
) -> None:
    def edit(m: Measurement, step: int) -> Measurement:
        if m.name != "estimator_score":
            return m
        values = m.values.copy()
        values[:, m.coordinates["score"].index("bias")] = 0.11
        return replace(m, values=values)

    data = make(
        "F7", report_context(report_runs.write(tmp_path / "run", (0, 10, 20), T, edit=edit))
    )
    assert "none is recommended" in data.finding
    assert {bubble.tone for bubble in data.panels[0].bubbles} == {"main"}


def test_stability_shows_exponents_with_errors_and_eigenvalues(
    context_of: Callable[[str], Context],
) -> None:
    context = context_of("full")
    exponents, eigenvalues, radius = make("F8", context).panels
    log_a = np.log(decay(context.lead, 20))
    assert exponents.lines[0].y == pytest.approx([k * log_a for k in range(1, 6)], rel=1e-5)
    band = exponents.bands[0]
    assert band.high - band.low == pytest.approx([4 * 0.05 * k * -log_a for k in range(1, 6)])
    assert len(eigenvalues.dots) == 4
    assert np.hypot(eigenvalues.dots[0].x, eigenvalues.dots[0].y) == pytest.approx(np.exp(log_a))
    assert radius.lines[0].y == pytest.approx(np.exp(log_a))


def test_health_writes_the_last_value_and_shades_what_is_allowed(tmp_path: Path) -> None:
    run = report_runs.write(tmp_path / "run", (0, 10, 20), T)
    context = report_context(run, config={"checks": {"reach": {"min": 2, "max": 50}}})
    panels = {panel.title: panel for panel in make("F9", context).panels}
    assert panels["Loss"].remark == "0.0333"  # 1 / (1 + 29)
    assert panels["Loss"].lines[0].x.size == 30
    assert panels["Reach (steps)"].allowed == (2, 50)
    assert panels["Gradient norm"].marks[0].at == 1.0


def test_layers_are_sorted_by_reach(context_of: Callable[[str], Context]) -> None:
    data = make("F10", context_of("full"))
    assert data.panels[0].y.names == LAYERS  # the lowest row first: the longer reach
    assert [row[0] for row in data.table.rows] == ["encoder.l1", "encoder.l0"]  # type: ignore[union-attr]


def test_memory_colours_states_by_their_last_token(context_of: Callable[[str], Context]) -> None:
    panel = make("F11", context_of("full")).panels[0]
    assert [dots.label for dots in panel.dots] == ["ends in 'a'", "ends in 'b'"]
    assert panel.dots[0].x == pytest.approx(np.cos(np.arange(0, T, 2)), abs=1e-6)
