"""`chance`, `needs` and `fail_states` of [tool.rnndiag]: read, refused where they are wrong, and used by everyone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diagnosed_runs import T, falling_losses, layer, profile, stuck_losses, write

import rnndiag
from rnndiag.errors import BadConfig
from rnndiag.health.config import read_config
from rnndiag.recorder.settings import settings_from

HALF = np.full((3, T), 0.5)
STUCK = {"gate_mean": HALF, "credit_profile": profile(0.5)}


def project(folder: Path, table: str) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(f"[tool.rnndiag]\n{table}\n")
    return path


def test_needs_makes_a_conditional_cause_certain(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {"rnn.l0": layer(**STUCK)})
    assert "If the task needs" in rnndiag.check(run, config={"checks": {}})[0].message
    config = project(tmp_path, "needs = 12")
    stated = rnndiag.check(run, config=config)[0]
    assert "If the task needs" not in stated.message
    assert "12 steps back" in stated.message
    assert "ln(12 - 1)" in stated.remedy


def test_chance_tells_that_a_lower_loss_is_a_constant_answer(tmp_path: Path) -> None:
    """The loss began far off, and came down to that of a constant: swing alone would pass for learning."""
    run = write(
        tmp_path / "run", {"rnn.l0": layer(swing=500.0)}, losses=falling_losses(1e4, 200.0, 0.2)
    )
    assert rnndiag.check(run)[0].text_value == "learned"
    stated = rnndiag.check(run, config=project(tmp_path, "chance = 200.0"))[0]
    assert (stated.text_value, stated.status) == ("stuck", "warn")


def test_fail_states_decide_what_fails_the_gate(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {"rnn.l0": layer()}, losses=stuck_losses())
    assert rnndiag.check(run)[0].status == "warn"
    states = 'checks.fail_states = ["stuck", "diverged"]'
    assert rnndiag.check(run, config=project(tmp_path, states))[0].status == "fail"
    diverged = write(tmp_path / "up", {"rnn.l0": layer()}, losses=falling_losses(1.4, 4.0))
    assert rnndiag.check(diverged)[0].status == "fail"
    none = project(tmp_path, "checks.fail_states = []")
    assert rnndiag.check(diverged, config=none)[0].status == "warn"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("needs = 0", "needs"),
        ("needs = true", "needs"),
        ('chance = "1.4"', "chance"),
        ('checks.fail_states = ["stcuk"]', "fail_states"),
        ("need = 3", "need"),
    ],
)
def test_a_wrong_value_is_refused_by_name(table: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=said):
        read_config(project(tmp_path, table))


def test_a_recording_takes_both_from_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project(tmp_path, 'needs = "6 h"\nchance = 0.7')
    assert (settings_from().needs, settings_from().chance) == ("6 h", 0.7)
    assert (settings_from(needs=3, chance=0.5).needs, settings_from(chance=0.5).chance) == (3, 0.5)
    project(tmp_path, "needs = [")
    assert (settings_from().needs, settings_from().chance) == (None, None)
