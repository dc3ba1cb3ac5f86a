"""The frozen gate: rounding never alarms, a change of the code always does; nothing in a snapshot is pickled."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from rnndiag.cli import main
from rnndiag.errors import CannotJudge, NotSupported
from rnndiag.health.finding import Finding
from rnndiag.health.frozen import compare, difference, tolerance
from rnndiag.health.outcome import exit_code
from rnndiag.recorder.frozen.arrays import decode, encode
from rnndiag.recorder.frozen.factory import build
from rnndiag.recorder.frozen.numbers import measure

FACTORY = """
import torch
from torch import nn

FAULT = ""

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 8, 2, batch_first=True, dropout=0.3)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        state, outs = None, []
        if FAULT == "initial state":
            state = tuple(0.05 * torch.ones(2, len(x), 8, dtype=x.dtype) for _ in range(2))
        for piece in x.split(8, 1):
            if FAULT == "detach" and state is not None:
                state = tuple(part.detach() for part in state)
            out, state = self.rnn(piece, state)
            outs.append(out)
        y = torch.cat(outs, 1)
        return self.head(y + 1e-3 if FAULT == "shift" else y)

def loss(model, batch):
    return nn.functional.mse_loss(model(batch["x"]), batch["y"])

def make():
    torch.manual_seed(0)
    return Net(), loss, {"x": torch.randn(4, 16, 3), "y": torch.randn(4, 16, 1)}
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fresh program in tmp_path; its FAULT can be set."""
    import sys

    (tmp_path / "program.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "program", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    build("program.py:make", tmp_path)
    return sys.modules["program"]


def measured(program: ModuleType, dtype: torch.dtype = torch.float32) -> dict[str, object]:
    model, loss, batch = program.make()
    cast = {key: value.to(dtype) for key, value in batch.items()}
    return measure(model.to(dtype), loss, cast)


def failed(found: list[Finding]) -> set[str]:
    return {one.check for one in found if one.status == "fail"}


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [30, pytest.param(100, marks=pytest.mark.long)])
def test_repeats_over_thread_counts_never_alarm(program: ModuleType, repeats: int) -> None:
    threads = torch.get_num_threads()
    model, loss, batch = program.make()
    old = measure(model, loss, batch)
    largest = 0.0
    try:
        for turn in range(repeats):
            torch.set_num_threads(1 if turn % 10 else 2 + turn % 20 // 10)
            found = compare(old, measure(model, loss, batch))
            assert exit_code(found) == 0, failed(found)
            largest = max(largest, *(one.value for one in found if one.value is not None))
    finally:
        torch.set_num_threads(threads)
    assert largest < tolerance("float32") / 10


def test_another_order_of_summation_does_not_alarm(program: ModuleType) -> None:
    """Float32 against float64 on the same weights: more rounding than any library's change of kernels."""
    old, new = measured(program, torch.float64), measured(program)
    found = compare({**old, "dtype": "float32"}, new)
    assert exit_code(found) == 0, failed(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fault", ["detach", "initial state"])
def test_a_planted_change_is_caught(program: ModuleType, fault: str, dtype: torch.dtype) -> None:
    old = measured(program, dtype)
    program.FAULT = fault
    found = compare(old, measured(program, dtype))
    assert exit_code(found) == 1
    assert "layer_runs" in failed(found)


def test_a_small_change_of_the_numbers_alone_is_caught(program: ModuleType) -> None:
    old = measured(program)
    program.FAULT = "shift"
    found = compare(old, measured(program))
    assert exit_code(found) == 1
    assert "layer_runs" not in failed(found)


def test_the_commands_freeze_check_accept(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["snapshot", "program.py:make", "-o", "snap"]) == 0
    assert "check it with:  rnndiag check --snapshot snap" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "snap").iterdir()}
    assert names == {"snapshot.json", "state.npz", "batch.npz", "numbers.json"}
    for name in ("state.npz", "batch.npz"):
        assert all(
            entry.endswith(".npy") for entry in zipfile.ZipFile(tmp_path / "snap" / name).namelist()
        )
        for array in np.load(tmp_path / "snap" / name, allow_pickle=False).values():
            assert array.dtype.kind in "fiub"
    assert main(["check", "--snapshot", "snap", "--json", "out.json"]) == 0
    assert {
        one["change"] for one in json.loads((tmp_path / "out.json").read_text())["findings"]
    } <= {
        None,
        "identical",
        "within noise",
    }
    source = (tmp_path / "program.py").read_text()
    (tmp_path / "program.py").write_text(source.replace('FAULT = ""', 'FAULT = "detach"'))
    capsys.readouterr()
    assert main(["check", "--snapshot", "snap"]) == 1
    told = capsys.readouterr().out
    assert "rnn.l0 was 'T 16, starts from zero' and is 'T 8, starts from zero'" in told
    assert "meant to change it?  rnndiag baseline --snapshot snap" in told
    assert main(["baseline", "--snapshot", "snap"]) == 0
    assert main(["check", "--snapshot", "snap"]) == 0


def test_a_snapshot_that_cannot_be_used_exits_3_or_2_in_a_sentence(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--snapshot", "absent"]) == 3
    assert main(["snapshot", "program.py:nothing", "-o", "snap"]) == 2
    assert "has no function 'nothing'" in capsys.readouterr().err
    assert main(["snapshot", "program.py:make", "-o", "snap"]) == 0
    source = (tmp_path / "program.py").read_text()
    (tmp_path / "program.py").write_text(source.replace("LSTM(3, 8", "LSTM(3, 9"))
    capsys.readouterr()
    assert main(["check", "--snapshot", "snap"]) == 3
    assert "do not fit the factory's model" in capsys.readouterr().err


def test_trees_come_back_as_they_were() -> None:
    packed = pack_padded_sequence(torch.randn(3, 4, 2), torch.tensor([2, 4, 1]), True, False)
    tree = {
        "a": torch.randn(2, 3, dtype=torch.bfloat16),
        "b": [torch.arange(3), (None, 2.5, "x", True)],
        "c": packed,
        "d": np.arange(4.0),
    }
    arrays: dict[str, np.ndarray] = {}
    structure = json.loads(json.dumps(encode(tree, arrays)))
    back = decode(structure, arrays)
    assert torch.equal(back["a"], tree["a"])  # type: ignore[arg-type]
    assert back["a"].dtype == torch.bfloat16
    assert torch.equal(back["b"][0], torch.arange(3))
    assert back["b"][1] == (None, 2.5, "x", True)
    assert torch.equal(back["c"].data, packed.data)
    assert torch.equal(back["c"].unsorted_indices, packed.unsorted_indices)
    assert (back["d"] == np.arange(4.0)).all()
    with pytest.raises(NotSupported, match="cannot hold a set"):
        encode({1, 2}, {})


def test_differences() -> None:
    assert difference([1.0, 2.0], [1.0, 2.0]) == 0
    assert difference([1.0, 2.0], [1.0, 2.2]) == pytest.approx(0.1)
    assert difference([1.0], [1.0, 2.0]) == float("inf")
    assert difference([1.0, float("nan")], [1.0, float("nan")]) == 0
    assert difference([1.0, float("nan")], [1.0, 2.0]) == float("inf")
    assert difference([0.0], [1e-9]) == float("inf")
    with pytest.raises(CannotJudge, match="int8"):
        tolerance("int8")


def test_a_failed_proof_of_the_pass_is_not_a_pass() -> None:
    old = {"layers": {"a": "T 3"}, "dtype": "float32", "numbers": {"state_norm@a": [1.0]}}
    found = compare(old, {**old, "inexact": {"a": "the sum law fails"}})
    assert exit_code(found) == 3
