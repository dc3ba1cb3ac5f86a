"""Swing: what exchanging the states of sequences would do to the loss, against a loop in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnndiag
from rnndiag.engine.layer_run import LayerRun
from rnndiag.store.recording import Recording


def by_hand(run: LayerRun) -> float:
    """Σ |⟨e_{t,b}, h_{t,b'} − h_{t,b}⟩|, b' the sequence before b, at its last step where it is shorter."""
    lengths = [run.T] * run.B if run.lengths is None else run.lengths.tolist()
    states, direct = run.state_vector().double(), torch.cat(run.direct, -1).double()
    total = 0.0
    for b in range(run.B):
        other = (b - 1) % run.B
        for t in range(lengths[b]):
            then = states[min(t, lengths[other] - 1), other]
            total += abs(float(direct[t, b] @ (then - states[t, b])))
    return total


def swing_of(recording: Recording, layer: str) -> float:
    found = {(m.name, m.layer): m for m in recording.measurements}
    return float(found["swing", layer].values)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_swing_of_a_padded_batch_matches_a_loop(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    rnn, head = kind(3, 5, batch_first=True), nn.Linear(5, 1)
    x, lengths = torch.randn(4, 6, 3), torch.tensor([6, 2, 5, 3])
    with rnndiag.probe(rnn) as probe:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y = pad_packed_sequence(rnn(packed)[0], batch_first=True)[0]
        head(y).square().mean().backward()
    run = probe.layer_runs[0]
    assert swing_of(probe.recording, run.name) == pytest.approx(by_hand(run), rel=1e-5)


def test_swing_is_the_change_of_a_loss_that_is_linear_in_the_states() -> None:
    torch.manual_seed(1)
    rnn, weights = nn.GRU(3, 5, batch_first=True), torch.randn(5)
    x = torch.randn(4, 6, 3)
    with rnndiag.probe(rnn) as probe:
        y = rnn(x)[0]
        (y[:, -1] @ weights).sum().backward()
    answers = (y[:, -1] @ weights).detach()
    change = float((answers.roll(1, 0) - answers).abs().sum())
    assert swing_of(probe.recording, "l0") == pytest.approx(change, rel=1e-5)


def test_a_model_that_ignores_its_input_has_no_swing() -> None:
    rnn, head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 1)
    nn.init.zeros_(rnn.weight_ih_l0)
    with rnndiag.probe(rnn) as probe:
        head(rnn(torch.randn(4, 6, 3))[0]).square().mean().backward()
    assert swing_of(probe.recording, probe.layer_runs[0].name) == 0.0


def test_input_spread_and_mean_are_those_of_the_inputs() -> None:
    torch.manual_seed(2)
    rnn, x = nn.GRU(3, 5, batch_first=True), 7.0 * torch.randn(50, 20, 3)
    x[..., 1] -= 300.0
    with rnndiag.probe(rnn) as probe:
        rnn(x)[0].sum().backward()
    found = {
        m.name: float(m.values)
        for m in probe.recording.measurements
        if m.name in ("input_spread", "input_mean")
    }
    entries = x.reshape(-1, 3).double()
    spread = float(entries.var(0, unbiased=False).mean().sqrt())
    mean = float(entries.mean(0).square().mean().sqrt())
    assert found == pytest.approx({"input_spread": spread, "input_mean": mean}, rel=1e-5)
