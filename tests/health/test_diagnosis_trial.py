"""A small form of the trial: faults planted in short programs, named first, and cured by the remedy that is named.

The part that is not `long` is of tasks that no threshold was chosen on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from trial_programs import Program, apply, train

import rnndiag

PLANTED: dict[str, tuple[Program, str]] = {
    "low rate": (Program("flip-flop", "gru", steps=150, rate=1e-6), "learning_rate_too_low"),
    "rate decays": (Program("flip-flop", steps=150, rate_decay=0.8), "learning_rate_too_low"),
    "nan": (Program("echo", "tanh", steps=80, nan_at=20), "nonfinite"),
    "dead": (Program("copy-lag", "relu", steps=200, bias=-4.0), "dead_units"),
    "explodes": (Program("recall", "relu", steps=150, gain=2.5), "exploding"),
    "contracts": (Program("recall", "tanh", steps=150, gain=0.2), "contracting_recurrence"),
    "decays": (Program("copy-lag", "gru", steps=200, weight_decay=0.3), "weights_decayed"),
    "chunks": (Program("copy-lag", "tanh", steps=200, carry=True, T=3), "window_too_short"),
    "not in optimizer": (
        Program("adding", layers=2, steps=100, not_in_optimizer=True),
        "frozen_or_unused",
    ),
    "not carried": (
        Program("copy-lag", "gru", steps=60, loop=True, reset=True),
        "state_not_carried",
    ),
    "too short": (Program("order", steps=150, last_steps=11, needs=22), "window_too_short"),
    "accumulated": (Program("recall", steps=150, init="torch", accumulate=2), "forget_gates_shut"),
    "decay groups": (
        Program("recall", steps=150, init="torch", optimizer="adamw", decay_groups=True),
        "forget_gates_shut",
    ),
}


QUICK = ("low rate", "rate decays", "nan", "not in optimizer", "too short")


def long_but(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """All cases, of which all but these are left to `make test-long`."""
    return [one if one in quick else pytest.param(one, marks=pytest.mark.long) for one in cases]


def run_of(path: Path, program: Program) -> tuple[rnndiag.Diagnosis, float]:
    last = train(program, path)[1]
    return rnndiag.diagnose(rnndiag.open_run(path)), last


@pytest.mark.parametrize("case", long_but(PLANTED, *QUICK))
def test_a_planted_fault_is_the_first_cause(case: str, tmp_path: Path) -> None:
    program, cause = PLANTED[case]
    found, _ = run_of(tmp_path / "run", program)
    assert found.causes[0].name == cause
    assert not found.healthy


LEARNS: tuple[dict[str, Any], ...] = (
    {"layers": 2},
    {"bidirectional": True},
    {"packed": True},
    {"warmup": 50},
    {"clip": 1e-3},  # Adam does not care
)


@pytest.mark.parametrize("changes", long_but(LEARNS, {"clip": 1e-3}))
def test_a_program_that_learns_gets_no_cause(changes: dict[str, Any], tmp_path: Path) -> None:
    found, last = run_of(tmp_path / "run", Program("recall", steps=350, **changes))
    assert last < 0.2
    assert (found.state, found.causes) == ("learned", ())


CURED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"init": "torch"}, "forget_gates_shut"),
    ({"rate": 1e-6}, "learning_rate_too_low"),
    ({"frozen": True}, "frozen_or_unused"),
    ({"nan_at": 20}, "nonfinite"),
)


@pytest.mark.parametrize("case", long_but(CURED, CURED[0]))
def test_the_first_remedy_cures(case: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    changes, cause = case
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
