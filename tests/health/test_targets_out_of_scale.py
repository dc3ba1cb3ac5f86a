"""Targets of another scale than the model's answers: named first, by a distance that a loop over samples confirms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import fits
import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rnndiag

B, T, H = 16, 12, 8


class Forecaster(L.LightningModule):
    """One value of each sequence, from the last state."""

    def __init__(self, cell: type[nn.RNNBase] = nn.LSTM, loss_factor: float = 1.0) -> None:
        super().__init__()
        self.rnn, self.head = cell(1, H, batch_first=True), nn.Linear(H, 1)
        self.loss_factor = loss_factor

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        answer = self.head(self.rnn(batch[0])[0][:, -1])
        return self.loss_factor * nn.functional.mse_loss(answer, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


def data(scale: float, shift: float) -> TensorDataset:
    x = torch.randn(64, T, 1, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, scale * x[:, -4:].sum(1) / 2 + shift)


def fitted(folder: Path, model: Forecaster, own: TensorDataset) -> rnndiag.Diagnosis:
    callback = rnndiag.GradientDiagnostics(folder, report=False, screen=False)
    trainer = L.Trainer(**{**fits.QUIET, "max_steps": 120, "callbacks": [callback]})
    trainer.fit(model, DataLoader(own, B))
    return rnndiag.diagnose(rnndiag.open_run(callback.run_dir))


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("scale", "shift"), [(1000.0, 0.0), (10.0, 200.0)])
def test_far_targets_come_first(
    cell: type[nn.RNNBase], scale: float, shift: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    found = fitted(tmp_path / "run", Forecaster(cell), data(scale, shift))
    first = found.causes[0]
    assert first.name == "targets_out_of_scale"
    assert first.remedy is not None
    assert first.remedy.knob == "standardise_targets"


def test_the_distance_is_that_of_a_loop_over_samples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, own = Forecaster(), data(300.0, 50.0)
    squares, losses = [], []
    for k in range(B):
        model.zero_grad()
        loss = model.training_step((own.tensors[0][k : k + 1], own.tensors[1][k : k + 1]), 0)
        loss.backward()
        squares.append(sum(float(p.grad.square().sum()) for p in model.rnn.parameters()))
        losses.append(float(loss.detach()))
    size = math.sqrt(sum(float(p.detach().square().sum()) for p in model.rnn.parameters()))
    expected = (sum(losses) / B) / math.sqrt(sum(squares) / B) / size
    found = fitted(tmp_path / "run", model, own)
    evidence = {one.what: one.value for one in found.causes[0].evidence}
    assert evidence["way_at_start"] == pytest.approx(expected, rel=0.02)


def test_the_unit_of_the_loss_does_not_count(tmp_path: Path) -> None:
    ways = []
    for factor in (1.0, 7.0):
        torch.manual_seed(0)
        found = fitted(tmp_path / str(factor), Forecaster(loss_factor=factor), data(500.0, 0.0))
        ways.append(found.causes[0].evidence[0].value)
    assert ways[0] == pytest.approx(ways[1], rel=1e-4)


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_targets_of_size_one_are_not_named(factor: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = fitted(tmp_path / "run", Forecaster(loss_factor=factor), data(1.0, 0.0))
    assert "targets_out_of_scale" not in [cause.name for cause in found.causes]


def test_a_head_that_starts_near_zero_is_not_blamed_on_the_targets(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Forecaster()
    nn.init.normal_(model.head.weight, std=1e-4)
    found = fitted(tmp_path / "run", model, data(1.0, 0.0))
    assert "targets_out_of_scale" not in [cause.name for cause in found.causes]
