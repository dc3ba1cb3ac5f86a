"""Curves as text: the heights follow the values, and what is no number has a sign of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import report_runs

from rnndiag.cli import main
from rnndiag.cli.text_picture import text_picture


def test_heights_follow_the_values() -> None:
    assert text_picture(np.arange(8.0)) == "▁▂▃▄▅▆▇█"
    assert text_picture(np.array([1.0, 1.0])) == "▁▁"
    assert text_picture(np.array([0.0, -np.inf, np.nan, np.inf, 1.0])) == "▁·??█"
    assert text_picture(np.zeros(0)) == ""


def test_long_curves_keep_their_peaks() -> None:
    values = np.zeros(600)
    values[305] = 1.0
    assert text_picture(values, 60) == "▁" * 30 + "█" + "▁" * 29


def test_show_draws_a_quantity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = report_runs.write(tmp_path / "run", (0, 10), 12)
    assert main(["show", str(run), "-q", "gate_contribution_norm", "-l", "encoder.l0"]) == 0
    told = capsys.readouterr().out
    for gate in "ifgo":
        assert f"█ {gate} by time" in told


def test_show_keeps_to_one_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = report_runs.write(tmp_path / "run", (0, 10), 12)
    assert main(["show", str(run), "-q", "loss", "--step", "0"]) == 0
    told = capsys.readouterr().out
    assert "step 0: 1 to 1" in told
    assert "step 10" not in told
    assert main(["show", str(run), "-q", "loss", "--step", "7"]) == 3
