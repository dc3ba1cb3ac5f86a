"""What the callback sees of the structure at its first recording reaches `rnndiag check`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.small_programs import Program, Small, train
from rnndiag.health import check
from rnndiag.health.outcome import exit_code
from rnndiag.health.recorder_findings import PREFLIGHT as NOTE
from rnndiag.recorder.preflight.glance import NOTE as WRITTEN

PROGRAM = Program(hidden=6, steps=6, batch_size=64)


def stepwise(model: nn.Module, x: Tensor) -> Tensor:
    """Calls the cell step by step and never passes the state on."""
    return torch.stack([model.head(model.rnn(x[:, t])) for t in range(x.shape[1])], 1)


def test_writer_and_reader_name_the_note_alike() -> None:
    assert NOTE == WRITTEN


@pytest.mark.parametrize("asked", [True, False])
def test_a_fault_of_structure_is_recorded_and_told(
    asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(program: Program) -> Small:
        torch.manual_seed(0)
        model = Small(program)
        model.rnn = nn.GRUCell(1, program.hidden)
        model.forward = partial(stepwise, model)
        return model

    monkeypatch.setattr("benchmarks.small_programs.Small", forgetful)
    run = train(
        PROGRAM, tmp_path / "run", recordings=6, measures=("contributions",), preflight=asked
    )
    told = [one for one in check(run) if one.check == "preflight: state not carried"]
    assert len(told) == asked
    assert all("called 40 times along the sequence" in one.message for one in told)


def test_a_healthy_program_leaves_nothing(tmp_path: Path) -> None:
    found = check(train(PROGRAM, tmp_path / "run", recordings=6, measures=("contributions",)))
    assert exit_code(found) == 0
    assert not [one for one in found if one.check.startswith("preflight")]
