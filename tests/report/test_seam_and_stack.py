"""Stacks beside their layers, and what chunked training throws away across its seams, in report, check and show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import report_runs

from rnndiag.cli import main
from rnndiag.health import check
from rnndiag.report.context import Context
from rnndiag.report.figures import FIGURES
from rnndiag.report.layers import layer_rows
from rnndiag.report.write_report import report_context
from rnndiag.run.run import open_run
from rnndiag.store.measurement import Measurement

T = 12
STACK = "encoder.l0..l1"
NOTES = {
    "stacks": {STACK: list(report_runs.LAYERS)},
    "seam": {STACK: "Cutting the state every 12 steps throws away 20 % of the credit."},
}
WINDOWS = 0.85 ** np.arange(25.0)


def whole(step: int) -> list[Measurement]:
    """A stack whose windows are off by 0.95^τ, and 0.85^τ across the seam of chunks of 12; the cut costs 31 %."""
    of, lags = Measurement.of, np.arange(T)
    inside = 0.95 ** np.arange(T + 1.0)
    return [
        of("credit_profile", np.tile(np.log(0.95) * lags[:, None], (1, 6)), STACK),
        of("window_bias", inside, STACK),
        of("window_cosine", np.ones(T + 1), STACK),
        of("noise", 0.5, STACK),
        of("full_gradient_norm", 1.0, STACK),
        of("seam_credit", np.log(0.9) * np.arange(24), STACK),
        of("seam_steps", np.array([12, 12]), STACK),
        of("seam_share", 0.2, STACK),
        of("seam_bias", 0.31, STACK),
        of("seam_cosine", 0.95, STACK),
        of("seam_mean_square", 0.24**2 + step / 1e6, STACK),
        of("seam_whole_mean_square", 1.0, STACK),
        of("seam_window_bias", WINDOWS, STACK),
        of("seam_window_cosine", np.ones(25), STACK),
    ]


def written(folder: Path, kept: str = "seam") -> Context:
    def measure(layer: str, step: int, length: int) -> list[Measurement]:
        found = report_runs.layer_content(layer, step, length)
        if layer == report_runs.LAYERS[0]:
            found += [m for m in whole(step) if kept == "seam" or not m.name.startswith("seam")]
        return found

    steps = (0, 10, 20, 30, 40)
    return report_context(report_runs.write(folder, steps, T, measure=measure, notes=NOTES))


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return written(tmp_path / "run")


def test_the_stack_stands_beside_its_layers(context: Context) -> None:
    assert context.run.layers == report_runs.LAYERS
    rows = {row.name: row for row in layer_rows(context)}
    assert list(rows)[-1] == STACK
    assert rows[STACK].cell == "2 layers, cut together"
    assert context.lead in report_runs.LAYERS
    names = FIGURES["F10"].make(context).panels[0].y.names
    assert names[0] == STACK
    labels = [line.label for line in FIGURES["F1"].make(context).panels[0].lines]
    assert labels == [
        context.lead,
        STACK,
        min(set(report_runs.LAYERS) - {context.lead}),
        "across the seam",
    ]


def test_the_windows_of_a_stack_are_drawn_and_advised(tmp_path: Path) -> None:
    context = written(tmp_path / "plain", "stack")
    data = FIGURES["F6"].make(context)
    lines = {line.label: line for line in data.panels[0].lines}
    assert lines["sliding window, on the minibatch"].y == pytest.approx(0.95 ** np.arange(1, 13))
    assert f"window, {context.lead} alone" in lines
    assert data.finding.startswith(f"Of {STACK}: Nothing shorter than all 12 steps keeps")
    assert "All layers of the stack are cut" in data.how_to_read


def test_what_the_seam_costs_is_drawn_and_said(context: Context) -> None:
    data = FIGURES["F6"].make(context)
    lines = {line.label: line for line in data.panels[0].lines}
    assert lines["across the seam: sliding window, on the minibatch"].y == pytest.approx(
        WINDOWS[1:]
    )
    (point,) = zip(
        lines["chunks as they are in use"].x, lines["chunks as they are in use"].y, strict=True
    )
    assert point == pytest.approx((12, 0.31))
    assert (
        "A window of 15 keeps the gradient within 10 % of BPTT through all 24 steps that were kept"
        in data.finding
    )
    assert "your chunks of 12 are off by 31 %, of which 24 % is systematic." in data.finding
    assert "20 % of the credit of a chunk's losses lies before it." in data.finding
    told = FIGURES["F1"].make(context).finding
    assert (
        "throws away 20 % of the credit of a chunk's losses and changes their gradient by 31 %"
        in told
    )


def test_the_check_says_what_the_cut_costs_and_what_would_do(context: Context) -> None:
    found = [one for one in check(context.run) if one.check == "truncation_error"]
    assert {one.layer for one in found} == set(report_runs.LAYERS)
    for one in found:
        assert one.value == pytest.approx(0.24, rel=1e-3)
        assert one.word == "WINDOW TOO SHORT"
        assert one.message == "the window in use leaves out 24.0 % of the gradient"
        assert one.remedy.startswith("Carry the graph through more steps. A window of 15 keeps")
        assert one.remedy.endswith(
            "your chunks of 12 are off by 31 %, of which 24 % is systematic."
        )


def test_show_says_what_was_found(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(context.run.path)]) == 0
    told = capsys.readouterr().out
    assert "across the seam" in told
    assert NOTES["seam"][STACK] in told  # type: ignore[index]
    assert f"    {STACK}   reach" in told
    assert open_run(context.run.path).layers == report_runs.LAYERS


def test_the_console_says_the_advice_where_nothing_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = report_runs.write(tmp_path / "run", (0, 10, 20, 30, 40), 8)  # its window is all of it
    main(["check", str(run)])
    told = " ".join(capsys.readouterr().out.split())
    assert "advice Nothing shorter than all 8 steps keeps the gradient within 10 %" in told
