"""An LSTM of 32 units is asked at the end what came first, 30 steps ago: seven programs, default settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trial_programs import Program, train

import rnndiag
from rnndiag.health.diagnosis import Diagnosis

CHANCE = 1.386
STEPS = 300


def diagnosed(path: Path, **changes: Any) -> tuple[Diagnosis, float]:
    """The diagnosis of the program with these changes, and its final loss."""
    program = Program("recall", T=30, hidden=32, steps=STEPS, **changes)
    last = train(program, path / "run")[1]
    return rnndiag.diagnose(rnndiag.open_run(path / "run")), last


def fails(path: Path) -> bool:
    """Whether `check` fails the run for its state."""
    found = rnndiag.check(rnndiag.open_run(path / "run"))
    return any(one.check == "diagnosis" and one.status == "fail" for one in found)


def test_a_healthy_net_has_learned_and_gets_no_cause(tmp_path: Path) -> None:
    found, last = diagnosed(tmp_path)
    assert last < 0.1 * CHANCE
    assert (found.state, found.causes) == ("learned", ())
    assert not fails(tmp_path)


@pytest.mark.parametrize(
    ("changes", "gate"), [({"init": "torch"}, 0.6), ({"forget_bias": -5.0}, 0.1)]
)
def test_forget_gates_that_are_shut_or_torch_s_own_are_named(
    tmp_path: Path, changes: dict[str, Any], gate: float
) -> None:
    found, last = diagnosed(tmp_path, **changes)
    assert last > 0.95 * CHANCE
    assert (found.state, found.causes[0].name) == ("stuck", "forget_gates_shut")
    assert found.causes[0].evidence[0].value < gate
    remedy = found.causes[0].remedy
    assert remedy is not None
    assert (remedy.knob, remedy.value) == ("forget_bias", 3.4)
    assert "credit is left 29 steps back" in found.headline


def test_a_state_detached_every_five_steps_is_a_window_too_short(tmp_path: Path) -> None:
    found, _ = diagnosed(tmp_path, detach=5)
    assert found.state in ("stuck", "learning", "diverged")
    assert found.causes[0].name == "window_too_short"
    assert found.causes[0].remedy is not None
    assert (found.causes[0].remedy.knob, found.causes[0].remedy.value) == ("window", 30)
    statement = rnndiag.check(rnndiag.open_run(tmp_path / "run"))[0]
    assert (statement.check, statement.status in ("warn", "fail")) == ("diagnosis", True)


def test_a_gradient_clipped_away_under_sgd_is_told_by_how_much(tmp_path: Path) -> None:
    found, _ = diagnosed(tmp_path, optimizer="momentum", rate=0.05, clip=1e-3)
    assert (found.state, found.causes[0].name) == ("stuck", "clipped_away")
    assert found.causes[0].evidence[0].value < 1 / 100
    assert found.causes[0].remedy is not None
    assert found.causes[0].remedy.knob == "gradient_clip_val"
    assert found.causes[0].remedy.value > 0.1


def test_a_learning_rate_too_high_is_named_where_it_hurts(tmp_path: Path) -> None:
    found, last = diagnosed(tmp_path, rate=30.0)
    assert last > 0.5 * CHANCE
    assert found.causes[0].name == "learning_rate_too_high"
    assert found.causes[0].remedy is not None
    assert found.causes[0].remedy.value < 0.1


def test_a_forgotten_batch_first_breaks_the_gate(tmp_path: Path) -> None:
    found, _ = diagnosed(tmp_path, batch_first=False)
    assert (found.state, found.causes[0].name) == ("broken", "time_and_batch_swapped")
    assert fails(tmp_path)
