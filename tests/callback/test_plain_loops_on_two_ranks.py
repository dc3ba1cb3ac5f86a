"""A plain loop on two gloo processes: DDP is recorded on each rank and pooled; sharded weights are refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnndiag

HERE = Path(__file__).parent


def trained(kind: str, folder: Path) -> str:
    """Run the program; what it said. The weights with and without the recorder are bit-identical."""
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / "loop_on_two_ranks.py"),
            kind,
            str(folder / "run"),
            str(folder / "weights"),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (
        torch.load(folder / f"weights.{k}", weights_only=True) for k in ("with", "without")
    )
    assert ours
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    return done.stdout + done.stderr


@pytest.mark.slow
def test_ddp_with_no_sync_accumulation_records_each_rank_and_pools_them(tmp_path: Path) -> None:
    told = trained("ddp-accumulate", tmp_path)
    assert told.count("rnndiag: 2 recordings, steps 0-2, 1 layer, T = 9") == 1  # one screen
    run = rnndiag.open_run(tmp_path / "run")
    assert run.ranks == (0, 1)
    recordings = [one for one in run.recordings if one.phase == "train"]
    assert [one.step for one in recordings] == [0, 2]
    assert {one.verdict for one in recordings} == {"exact"}, recordings[0].reasons
    apart = [run.select("gradient_norm", "rnn.l0", rank=rank).values for rank in (0, 1)]
    assert not (apart[0] == apart[1]).all()
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_weights_sharded_by_fsdp2_are_refused_by_name(tmp_path: Path) -> None:
    told = trained("fsdp", tmp_path)
    assert "rnn.weight_ih_l0 is sharded over processes (fully_shard)" in told
    assert not (tmp_path / "run").exists()
