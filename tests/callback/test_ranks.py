"""Two processes: a recording per rank, local gradients proved locally, one schedule, weights untouched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnndiag

HERE = Path(__file__).parent


def program(name: str, *words: str) -> str:
    """Run a program of this folder; what it said."""
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])
    done = subprocess.run(
        [sys.executable, str(HERE / name), *words],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["steps", "budget"])
def test_two_ranks_record_apart_and_are_read_as_one(schedule: str, tmp_path: Path) -> None:
    program("train_on_two_ranks.py", str(tmp_path / "run"), str(tmp_path / "weights"), schedule)
    ours, theirs = (
        torch.load(tmp_path / f"weights.{k}", weights_only=True) for k in ("with", "without")
    )
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    run = rnndiag.open_run(tmp_path / "run")
    assert run.ranks == (0, 1)
    recordings = [r for r in run.recordings if r.phase == "train"]
    assert {r.ranks for r in recordings} == {(0, 1)}
    assert {r.verdict for r in recordings} == {"exact"}, recordings[0].reasons
    if schedule == "steps":
        assert run.steps_of("train").tolist() == [0, 2, 4, 6]
    else:
        # how many depends on the clock; the first and the last step are recorded whatever it says
        assert {0, 7} <= set(run.steps_of("train").tolist())
    series = run["gradient_norm", "rnn.l0"]
    assert series.ranks.tolist() == [2] * len(recordings)
    apart = [run.select("gradient_norm", "rnn.l0", rank=rank).values for rank in (0, 1)]
    assert not (apart[0] == apart[1]).all()  # gradients of each rank's own half of the batch


@pytest.mark.slow
def test_weights_that_lightning_shards_are_refused_by_name_and_trained(tmp_path: Path) -> None:
    told = program("train_sharded.py", str(tmp_path / "run"))
    assert told.count("rnn.weight_ih_l0 is sharded over processes (fully_shard)") == 2
    assert not (tmp_path / "run").exists()
