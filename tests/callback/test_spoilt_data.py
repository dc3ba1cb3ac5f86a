"""A batch that holds a NaN is named also where gradients accumulate over several batches."""

from __future__ import annotations

from pathlib import Path

import pytest
from trial_programs import Program, train

import rnndiag


@pytest.mark.parametrize("nan_at", [4, 5])
def test_the_first_and_the_last_batch_of_a_step_are_looked_at(nan_at: int, tmp_path: Path) -> None:
    program = Program("flip-flop", "gru", accumulate=2, nan_at=nan_at, steps=6)
    train(program, tmp_path / "run", ("contributions",))
    first = rnndiag.diagnose(rnndiag.open_run(tmp_path / "run")).causes[0]
    assert first.name == "nonfinite"
    assert first.remedy is not None
    assert first.remedy.knob == "skip_nonfinite_batches"
    assert "The batch of step 2 holds nan or inf" in first.sentence
