"""The examples in the docstrings of the public names run, and public functions say what they take and return.

An example finds these names: `torch`, `nn`, `rnndiag`, a `model` with an LSTM `rnn`, a `batch`, `loss_of(model,
batch)`, the model's `layer_run` (T = 12, B = 4, I = 3, H = 5), and the layer run of an `earlier_chunk`; a run is
stored in `logs/exp1`.
"""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report_runs
import torch
from torch import nn

import rnndiag

SHOWN_ELSEWHERE = {"MemoryNeed", "Recorder", "carry", "memory_need"}
"""Their examples need a whole training loop; the pages of the docs run such. So do examples that read a stored run."""

FUNCTIONS = [name for name in rnndiag.__all__ if inspect.isfunction(getattr(rnndiag, name))]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 5), nn.Linear(5, 1)

    def forward(self, x: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        out, state = self.rnn(x, state)
        return self.head(out), state


def loss_of(model: Model, batch: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(batch)[0].square().mean()
    return loss


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    from rnndiag.engine.cells import CELLS

    monkeypatch.setattr("rnndiag.engine.cells.registry.CELLS", dict(CELLS))
    monkeypatch.chdir(tmp_path)
    report_runs.write(tmp_path / "logs" / "exp1", (0, 10), 6)
    torch.manual_seed(0)
    model, batch = Model(), torch.randn(12, 4, 3)
    with rnndiag.probe(model) as probe:
        out, (h, c) = model(torch.randn(12, 4, 3))
        out.mean().backward()
    (earlier_chunk,) = probe.layer_runs
    with rnndiag.probe(model) as probe:
        model(batch, (h.detach(), c.detach()))[0].square().mean().backward()
    (layer_run,) = probe.layer_runs
    return {
        "torch": torch,
        "nn": nn,
        "rnndiag": rnndiag,
        "model": model,
        "batch": batch,
        "loss_of": loss_of,
        "layer_run": layer_run,
        "earlier_chunk": earlier_chunk,
    }


WITH_EXAMPLE = [
    name
    for name in rnndiag.__all__
    if ">>>" in (doc := inspect.getdoc(getattr(rnndiag, name)) or "")
    and name not in SHOWN_ELSEWHERE
    and "runs/" not in doc.split(">>>", 1)[1]
]


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_the_example_of_a_public_name_prints_what_it_says(name: str, names: dict[str, Any]) -> None:
    found = doctest.DocTestFinder(recurse=False).find(
        getattr(rnndiag, name), name, module=False, globs=names
    )
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in found:
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).attempted > 0
    assert not report, "".join(report)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_documents_its_arguments_and_has_an_example(name: str) -> None:
    function: Callable[..., Any] = getattr(rnndiag, name)
    doc = inspect.getdoc(function) or ""
    lacks = [part for part in ("Args:", ">>>") if part not in doc]
    assert not lacks, lacks
    section = doc.split("Args:")[1]
    for argument in inspect.signature(function).parameters:
        assert f"\n    {argument}:" in section, argument
