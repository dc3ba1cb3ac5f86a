"""A fit that trains with an estimator of `unroll` is recorded as what it is: the whole sequence, and the estimator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from fits import QUIET
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnndiag
from rnndiag.train import Bernoulli, Chunk, Full, Roulette, SourceStep, Uniform, Window, unroll

T, B = 9, 4
ESTIMATORS = [
    Window(3),
    Chunk(3),
    Chunk(2, 5),
    Bernoulli(0.7),
    Uniform(),
    Roulette(0.8),
    SourceStep(2),
]


class Net(L.LightningModule):
    def __init__(self, kind: str, estimator: Any, packed: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = getattr(nn, kind)(3, 5, **options)
        self.head = nn.Linear(5, 1)
        self.estimator, self.packed = estimator, packed
        self.carried: Any = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        inputs: Tensor | PackedSequence = batch.transpose(0, 1)
        if self.packed:
            inputs = pack_padded_sequence(inputs, [9, 7, 4, 1])  # type: ignore[arg-type]
        state = self.carried
        if isinstance(self.rnn, nn.RNNCellBase):
            state = torch.zeros(B, 5)
        outputs, _ = unroll(self.rnn, inputs, state, self.estimator)
        if self.packed:
            outputs, _ = pad_packed_sequence(outputs)
        return self.head(outputs).square().mean() + self.head(outputs[-1]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(net: Net, callbacks: list[Any]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    data = torch.utils.data.DataLoader(torch.randn(3 * B, T, 3), B)
    L.Trainer(**{**QUIET, "max_epochs": 1}, callbacks=callbacks).fit(net, data)
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def recorded(net: Net, folder: Path, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    callback = rnndiag.GradientDiagnostics(
        folder, every_n_steps=2, screen=False, report=False, strict=True, **options
    )
    weights = fit(net, [callback])
    return rnndiag.open_run(folder), weights


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.label)
@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_numbers_are_those_of_the_whole_sequence(kind: str, estimator: Any, tmp_path: Path) -> None:
    run, weights = recorded(Net(kind, estimator), tmp_path / "cut")
    plain = fit(Net(kind, estimator), [])
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    whole, _ = recorded(Net(kind, Full()), tmp_path / "whole")
    assert run.layers == whole.layers
    first = run.recordings[0]
    assert first.verdict == "exact"
    layer = run.layers[0]
    assert first.notes["trained_with"] == {layer: estimator.label}
    for quantity in ("credit_profile", "adjoint_norm", "direct_gradient_norm"):
        ours, theirs = (one[quantity, layer].values[0] for one in (run, whole))
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-7)


def test_the_estimator_that_was_used_is_scored(tmp_path: Path) -> None:
    for estimator in (Window(4), Bernoulli(0.7)):
        run, _ = recorded(Net("GRU", estimator), tmp_path / estimator.label)
        scores = run["estimator_score", "rnn.l0"]
        assert estimator.label in scores.coordinates["estimator"]
        window = run["window_in_use", "model"].values[0]
        assert window == (4 if isinstance(estimator, Window) else T)


def test_packed_sequences_are_whole_too(tmp_path: Path) -> None:
    run, weights = recorded(Net("LSTM", Window(2), packed=True), tmp_path / "run")
    plain = fit(Net("LSTM", Window(2), packed=True), [])
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    whole, _ = recorded(Net("LSTM", Full(), packed=True), tmp_path / "whole")
    ours, theirs = (one["credit_profile", "rnn.l0"].values[0] for one in (run, whole))
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-7)


def test_a_stack_with_dropout_has_the_masks_of_the_step_or_says_why_not(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_layers": 2, "dropout": 0.5}
    for estimator in (Window(3), Chunk(3)):
        run, weights = recorded(Net("LSTM", estimator, **options), tmp_path / estimator.label)
        plain = fit(Net("LSTM", estimator, **options), [])
        assert all(torch.equal(weights[name], plain[name]) for name in plain)
        whole, _ = recorded(Net("LSTM", Full(), **options), tmp_path / f"{estimator.label} whole")
        notes = run.recordings[0].notes
        if "does not come out the same" in str(notes.get("not_measured", {})):
            assert "trained_with" not in notes
        else:
            ours, theirs = (one["credit_profile", "rnn.l1"].values[0] for one in (run, whole))
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-7)


def test_a_probe_sees_the_whole_sequence(tmp_path: Path) -> None:
    net = Net("LSTM", Window(3))
    batch = torch.randn(B, T, 3)
    with rnndiag.probe(net) as seen:
        net.training_step(batch, 0).backward()
    (run,) = seen.layer_runs
    assert run.T == T
    assert seen.recording.notes["trained_with"] == {"rnn.l0": "window 3"}
    with rnndiag.probe(net) as seen:
        net.estimator = Full()
        net.training_step(batch, 0).backward()
    assert seen.layer_runs[0].T == T
    assert "trained_with" not in seen.recording.notes


def test_loop_of_ones_own_says_why_it_is_not_recorded_whole(tmp_path: Path) -> None:
    class Loop(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            rule = rnndiag.train.between_steps(self.estimator, T)
            h, found = torch.zeros(B, 5), []
            for t in range(T):
                h = self.rnn(batch[:, t], rule.state(t, h))
                found.append(self.head(h))
            return torch.stack(found).square().mean()

    run, _ = recorded(Loop("GRUCell", Chunk(3)), tmp_path / "cut")
    why = run.recordings[0].notes["not_measured"]["between_steps"]
    assert "trained with chunk 3" in why
    assert "only the program can run its steps again" in why
    whole, _ = recorded(Loop("GRUCell", Full()), tmp_path / "whole")
    assert "not_measured" not in whole.recordings[0].notes
