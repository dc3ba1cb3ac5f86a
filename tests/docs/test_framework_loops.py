"""The listings of docs/training-loops.md for other frameworks run where these are installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rnndiag

PAGE = Path(__file__).parents[2] / "docs" / "training-loops.md"
LISTINGS = dict(
    re.findall(r"^```\n# ([^\n]+)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        out = self.head(self.rnn(x)[0])
        return out if labels is None else {"loss": (out - labels).square().mean(), "out": out}


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the listings use."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = Net()
    batches = [(torch.randn(4, 9, 3), torch.randn(4, 9, 1)) for _ in range(6)]
    return {
        "__name__": "listing",
        "torch": torch,
        "rnndiag": rnndiag,
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), 1e-2),
        "batches": batches,
        "loss_of": lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
    }


def run_listing(name: str, space: dict[str, Any]) -> None:
    exec(compile(LISTINGS[name], f"{PAGE.name}, {name}", "exec"), space)


def test_every_listing_has_a_test() -> None:
    assert set(LISTINGS) == {"Accelerate", "Hugging Face", "Ignite", "skorch"}


@pytest.mark.parametrize(("name", "package"), [("Accelerate", "accelerate"), ("Ignite", "ignite")])
def test_loop_with_a_framework_records_from_the_first_step(
    name: str, package: str, space: Any
) -> None:
    pytest.importorskip(package)
    run_listing(name, space)
    run = rnndiag.open_run(f"runs/{package}")
    assert run.steps_of("train")[0] == 0
    assert {r.verdict for r in run.recordings if r.phase == "train"} == {"exact"}
    assert run.status.reason == "finished"


def test_skorch(space: Any) -> None:
    pytest.importorskip("skorch")
    run_listing("skorch", space)
    x = np.concatenate([x.numpy() for x, _ in space["batches"]])
    y = np.concatenate([y.numpy() for _, y in space["batches"]])
    space["RecordedNet"](Net, max_epochs=2, batch_size=4, train_split=None, verbose=0).fit(x, y)
    run = rnndiag.open_run("runs/skorch")
    assert run.layers == ("rnn.l0",)
    assert {r.verdict for r in run.recordings if r.phase == "train"} == {"exact"}


def test_hugging_face(space: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run_listing("Hugging Face", space)
    data = [{"x": x[0], "labels": y[0]} for x, y in space["batches"] for _ in range(4)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    callbacks = [space["Diagnostics"]()]
    transformers.Trainer(space["model"], arguments, train_dataset=data, callbacks=callbacks).train()
    run = rnndiag.open_run(tmp_path / "out" / "rnndiag")
    assert run.layers == ("rnn.l0", "rnn.l0#2")
    assert not run.outlines[-1].notes["clipping"][-1]["share"]
    assert run.steps_of("train")[0] == 0
    assert {r.verdict for r in run.recordings if r.phase == "train"} == {"exact"}
