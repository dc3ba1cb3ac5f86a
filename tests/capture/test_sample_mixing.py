"""Whether a loss mixes the samples of its batch: found by the recorder, and what then is not told."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fits
import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, TensorDataset

import rnndiag

T, B, H = 7, 6, 4
functional = nn.functional


class Net(nn.Module):
    """A recurrent layer and a head of one output."""

    def __init__(self, kind: str = "layer") -> None:
        super().__init__()
        self.kind = kind
        self.rnn: Any = (
            nn.LSTMCell(3, H) if kind == "cells" else nn.LSTM(3, H, 2, batch_first=kind == "first")
        )
        self.norm, self.head = nn.BatchNorm1d(H), nn.Linear(H, 2)

    def states(self, x: Tensor) -> Tensor:
        """Outputs, (T, B, H)."""
        if self.kind == "cells":
            state, found = None, []
            for step in x:
                state = self.rnn(step, state)
                found.append(state[0])
            return torch.stack(found)
        if self.kind == "first":
            return self.rnn(x.transpose(0, 1))[0].transpose(0, 1)
        if self.kind == "packed":
            lengths = torch.tensor([T, 3, 5, 7, 1, 2])
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            return pad_packed_sequence(self.rnn(packed)[0])[0]
        return self.rnn(x)[0]


def summed(net: Net, h: Tensor) -> Tensor:
    return net.head(h).square().mean()


def classes(net: Net, h: Tensor) -> Tensor:
    return functional.cross_entropy(net.head(h[-1]), torch.arange(B) % 2)


def linear(net: Net, h: Tensor) -> Tensor:
    return net.head(h).sum()


def attends_to_time(net: Net, h: Tensor) -> Tensor:
    weights = (h * h[-1]).sum(-1, keepdim=True).softmax(0)
    return net.head((weights * h).sum(0)).square().mean()


def batch_norm(net: Net, h: Tensor) -> Tensor:
    return net.head(net.norm(h[-1])).square().mean()


def contrastive(net: Net, h: Tensor) -> Tensor:
    last = functional.normalize(h[-1], dim=1)
    return functional.cross_entropy(last @ last.T / 0.5, (torch.arange(B) + 1) % B)


def root_of_mean(net: Net, h: Tensor) -> Tensor:
    return net.head(h).square().mean().sqrt()


def one_pair(net: Net, h: Tensor) -> Tensor:
    """Only two of the samples meet."""
    return net.head(h).square().mean() + h[0, 4] @ h[0, 1]


APART: list[Callable[[Net, Tensor], Tensor]] = [summed, classes, linear, attends_to_time]
MIXED: list[Callable[[Net, Tensor], Tensor]] = [
    batch_norm,
    contrastive,
    root_of_mean,
    one_pair,
]
KINDS = ("layer", "first", "packed", "cells")


def recorded(net: Net, loss: Callable[[Net, Tensor], Tensor]) -> rnndiag.Probe:
    with rnndiag.probe(net) as probe:
        loss(net, net.states(torch.randn(T, B, 3))).backward()
    return probe


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", APART)
def test_a_sum_over_samples_has_a_noise(loss: Any, kind: str) -> None:
    probe = recorded(Net(kind), loss)
    assert all(run.independent for run in probe.layer_runs)
    told = probe.recording.notes.get("not_measured", {})
    assert "noise" not in told
    assert "samples" not in told
    layer = probe.layer_runs[0].name
    assert math.isfinite(float(probe.recording["noise", layer].values))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", MIXED)
def test_a_loss_that_mixes_samples_has_none(loss: Any, kind: str) -> None:
    probe = recorded(Net(kind), loss)
    assert not any(run.independent for run in probe.layer_runs)
    recording = probe.recording
    assert "mixes the samples" in recording.notes["not_measured"]["noise"]
    layer = probe.layer_runs[0].name
    for quantity in ("noise", "tail_mean_square", "chunk_mean_square"):
        assert math.isnan(recording[quantity, layer].values.flat[0]), quantity
    assert recording["window_bias", layer].values[0] == pytest.approx(1.0)
    assert rnndiag.lag_sweep(probe.layer_runs[0], independent=True).noise > 0


@pytest.mark.parametrize("weight", [1.0, 1e-6])
@pytest.mark.parametrize("pair", [(0, 1), (1, 33), (31, 63), (5, 69), (68, 69)])
def test_any_two_of_many_samples_that_meet_are_found(pair: tuple[int, int], weight: float) -> None:
    torch.manual_seed(0)
    net = Net()
    with rnndiag.probe(net) as probe:
        h = net.states(torch.randn(T, 70, 3))
        (summed(net, h) + weight * (h[0, pair[0]] @ h[2, pair[1]])).backward()
    assert not any(run.independent for run in probe.layer_runs)


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1.0, 1e20, 1e34])
@pytest.mark.parametrize("batch", [2, 33, 70])
def test_the_size_of_the_loss_mixes_nothing(scale: float, batch: int) -> None:
    torch.manual_seed(0)
    net = Net()
    with rnndiag.probe(net) as probe:
        h = net.states(torch.randn(T, batch, 3))
        (scale * (net.head(h).tanh().square().sum() + h.exp().mean())).backward()
    assert all(run.independent for run in probe.layer_runs)


class Doubled(torch.autograd.Function):
    """An operation written in Python."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def test_what_cannot_be_looked_at_is_said_and_taken_for_a_sum() -> None:
    probe = recorded(Net(), lambda net, h: Doubled.apply(net.head(h)).square().mean())
    told = probe.recording.notes["not_measured"]
    assert "an operation in Python" in told["samples"]
    assert float(probe.recording["noise", "rnn.l0"].values) > 0


def test_to_look_calls_no_hook_and_changes_no_gradient() -> None:
    torch.manual_seed(1)
    net, x, calls = Net(), torch.randn(T, B, 3), []

    def train() -> list[Tensor]:
        net.zero_grad()
        h = net.states(x)
        read = net.norm(h[-1])
        read.register_hook(lambda gradient: calls.append(1))
        net.head(read).square().mean().backward()
        return [value.grad.clone() for value in net.parameters() if value.grad is not None]

    plain = train()
    with rnndiag.probe(net) as probe:
        watched = train()
    assert len(calls) == 2
    assert all(map(torch.equal, plain, watched))
    assert not probe.layer_runs[0].independent


class Tuned(L.LightningModule):
    """The root of a mean as its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net("first")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return root_of_mean(self.net, self.net.states(batch[0].transpose(0, 1)))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-2)


@pytest.mark.parametrize("independent", [None, True, False])
def test_the_callback_looks_unless_it_is_told(independent: bool | None, tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(2 * B, T, 3))
    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run", every_n_steps=1, strict=True, report=False, independent=independent
    )
    trainer = L.Trainer(**fits.QUIET, max_steps=2, callbacks=[callback])
    trainer.fit(Tuned(), DataLoader(data, batch_size=B))
    run = rnndiag.open_run(tmp_path / "run")
    told = run.at(0).notes.get("not_measured", {})
    assert math.isfinite(float(run.at(0)["noise", "net.rnn.l0"].values)) == (independent is True)
    said = {None: "the loss mixes", False: "independent=False", True: ""}[independent]
    assert said in told.get("noise", "")
    if not independent:
        assert run.window(layer="net.rnn.l0").source == "minibatch"
