"""A forgotten batch_first is found in eight of eight tasks, by the loader's batch size where targets do not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from trial_programs import Program, train

import rnndiag
from rnndiag.recorder.facts.lightning_loop import _batch_size

TASKS = ("recall", "copy-lag", "xor", "ar2", "flip-flop", "adding", "echo", "text")


def structure(path: Path, **changes: Any) -> list[str]:
    train(Program(steps=2, **changes), path, ("contributions",))
    return [cause.name for cause in rnndiag.diagnose(rnndiag.open_run(path)).causes]


@pytest.mark.parametrize("task", TASKS)
def test_time_and_batch_swapped_is_found(task: str, tmp_path: Path) -> None:
    assert structure(tmp_path / "run", task=task, batch_first=False)[0] == "time_and_batch_swapped"


@pytest.mark.parametrize("task", ["recall", "flip-flop"])
def test_a_right_program_is_not_called_swapped(task: str, tmp_path: Path) -> None:
    assert "time_and_batch_swapped" not in structure(tmp_path / "run", task=task)


@pytest.mark.parametrize("changes", [{"layers": 2}, {"bidirectional": True}, {"cell": "gru"}])
def test_it_is_found_in_other_nets(changes: dict[str, Any], tmp_path: Path) -> None:
    found = structure(tmp_path / "run", task="flip-flop", batch_first=False, **changes)
    assert found[0] == "time_and_batch_swapped"


def test_a_batch_as_large_as_a_sequence_is_long_says_nothing(tmp_path: Path) -> None:
    """Both dims are 30: no number of the step tells them apart."""
    for batch_first in (True, False):
        found = structure(
            tmp_path / str(batch_first), task="flip-flop", batch=30, batch_first=batch_first
        )
        assert "time_and_batch_swapped" not in found


def test_a_data_set_smaller_than_a_batch_is_not_taken_for_swapped() -> None:
    """7 sequences of 32 steps under a batch size of 32 come as (7, 32): the batch size is then 7."""
    x = torch.zeros(7, 32, 3)
    assert _batch_size(DataLoader(TensorDataset(x), 32)) == 7
    assert _batch_size(DataLoader(TensorDataset(x), 4)) == 4
    assert _batch_size(DataLoader(TensorDataset(x), batch_size=None)) is None
