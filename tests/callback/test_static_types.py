"""People's own type checkers take the callback where a Trainer of either package is built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import lightning.pytorch as L
import pytorch_lightning as pl
import rnndiag

cb = rnndiag.GradientDiagnostics("runs/a", every_n_steps=10, measures=["lags"], time_unit=("h", 1))
L.Trainer(callbacks=[cb])
pl.Trainer(callbacks=[cb])
first: L.Callback = cb
second: pl.Callback = cb
"""


@pytest.mark.long
def test_a_trainer_of_either_package_takes_it(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "train.py"
    program.write_text(PROGRAM + "wrong: int = cb.run_dir\n")
    root = Path(__file__).parents[2]
    words = ["--follow-imports=silent", "--ignore-missing-imports", "--show-error-codes"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, f"--cache-dir={tmp_path}", str(program)],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    told = [line for line in done.stdout.splitlines() if "train.py" in line]
    assert len(told) == 1, done.stdout + done.stderr
    assert "[assignment]" in told[0]
