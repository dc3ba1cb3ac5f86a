"""A small form of the trial: faults planted in short programs, named first, and cured by the remedy that is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trial_programs import Program, apply, train

import rnndiag

pytestmark = pytest.mark.long

PLANTED: dict[str, tuple[Program, str]] = {
    "low rate": (Program("copy-lag", "gru", steps=150, rate=1e-6), "learning_rate_too_low"),
    "nan": (Program("xor", steps=80, nan_at=20), "nonfinite"),
    "dead": (Program("copy-lag", "relu", steps=200, bias=-4.0), "dead_units"),
    "explodes": (Program("copy-lag", "relu", steps=200, gain=2.5), "exploding"),
    "contracts": (Program("copy-lag", "tanh", steps=200, gain=0.2), "contracting_recurrence"),
    "decays": (Program("copy-lag", "gru", steps=200, weight_decay=0.3), "weights_decayed"),
    "chunks": (Program("copy-lag", "tanh", steps=200, carry=True, T=3), "window_too_short"),
    "not in optimizer": (
        Program("recall", layers=2, steps=100, not_in_optimizer=True),
        "frozen_or_unused",
    ),
    "not carried": (
        Program("copy-lag", "gru", steps=60, loop=True, reset=True),
        "state_not_carried",
    ),
    "too short": (Program("recall", steps=150, last_steps=12, needs=24), "window_too_short"),
    "accumulated": (Program("recall", steps=150, init="torch", accumulate=2), "forget_gates_shut"),
    "decay groups": (
        Program("recall", steps=150, init="torch", optimizer="adamw", decay_groups=True),
        "forget_gates_shut",
    ),
}


def run_of(path: Path, program: Program) -> tuple[rnndiag.Diagnosis, float]:
    last = train(program, path)[1]
    return rnndiag.diagnose(rnndiag.open_run(path)), last


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_is_the_first_cause(case: str, tmp_path: Path) -> None:
    program, cause = PLANTED[case]
    found, _ = run_of(tmp_path / "run", program)
    assert found.causes[0].name == cause
    assert not found.healthy


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": 2},
        {"bidirectional": True},
        {"packed": True},
        {"warmup": 50},
        {"clip": 1e-3},  # Adam does not care
    ],
)
def test_a_program_that_learns_gets_no_cause(changes: dict[str, Any], tmp_path: Path) -> None:
    found, last = run_of(tmp_path / "run", Program("recall", steps=350, **changes))
    assert last < 0.2
    assert (found.state, found.causes) == ("learned", ())


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"init": "torch"}, "forget_gates_shut"),
        ({"rate": 1e-6}, "learning_rate_too_low"),
        ({"frozen": True}, "frozen_or_unused"),
        ({"nan_at": 20}, "nonfinite"),
    ],
)
def test_the_first_remedy_cures(changes: dict[str, Any], cause: str, tmp_path: Path) -> None:
    program = Program("recall", steps=350, **changes)
    found, last = run_of(tmp_path / "faulty", program)
    assert found.causes[0].name == cause
    assert not last < 1.2
    assert found.causes[0].remedy is not None
    repaired = apply(program, found.causes[0].remedy)
    assert repaired is not None
    again, better = run_of(tmp_path / "repaired", repaired)
    assert better < 0.28  # 80 % of the way from chance
    assert again.state == "learned"
