"""kill -9 at 20 random moments of a training run: every complete recording is readable each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rnndiag

HERE = Path(__file__).parent
KILLS = 20


@pytest.mark.slow
def test_a_kill_loses_at_most_the_recording_being_written(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / "train_until_killed.py"),
            str(tmp_path),
            *map(str, range(KILLS)),
        ],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = 0
    for seed in range(KILLS):
        told = tmp_path / f"{seed}.told"
        acknowledged = int(told.read_text() or 0) if told.exists() else 0
        if not (tmp_path / str(seed)).exists():
            assert acknowledged == 0
            continue
        run = rnndiag.open_run(tmp_path / str(seed))
        steps = [r.step for r in run.recordings if "contribution_norm" in r.quantities]
        assert steps == list(range(len(steps)))
        assert len(steps) >= acknowledged
        assert {r.verdict for r in run.recordings} <= {"exact"}
        assert run.status.word != "finished"
        assert all("cut off" in str(problem) for problem in run.problems)
        seen += len(steps)
    assert seen > KILLS  # most were killed in the middle of training
