"""bf16 modules, autocast and scaled losses: what is held against which bound, and in what the replay computes."""

from __future__ import annotations

import pytest
import torch
from bf16 import skip_without_bf16_lstm
from torch import nn

import rnndiag

B, I, H, T = 4, 6, 8, 7
KINDS = [nn.LSTM, nn.GRU, nn.RNN]
CELLS = [nn.LSTMCell, nn.GRUCell, nn.RNNCell]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_to_bf16(kind: type[nn.RNNBase]) -> None:
    skip_without_bf16_lstm(kind is nn.LSTM)
    module, x = kind(I, H, 2, bidirectional=True), torch.randn(T, B, I)
    with rnndiag.probe(module) as probe:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, _ = module(x)
        out.float().square().mean().backward()
    (proof,) = probe.proofs
    assert proof.verdict == "exact", proof.reasons
    assert proof.worst < 1e-2
    assert probe.backward_passes[0].dtype == torch.bfloat16
    run = probe.layer_runs[0]
    assert run.dtype == torch.float32
    rounded = module.weight_hh_l0.detach().bfloat16().float()
    assert torch.equal(run.weights["weight_hh"], rounded)


@pytest.mark.parametrize("kind", CELLS)
def test_cells_under_autocast(kind: type[nn.RNNCellBase]) -> None:
    cell, xs = kind(I, H), torch.randn(T, B, I)
    with rnndiag.probe(cell) as probe:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            state = None
            for x in xs:
                state = cell(x, state)
        out = state[0] if isinstance(state, tuple) else state
        out.float().square().mean().backward()
    (proof,) = probe.proofs
    assert [run.T for run in probe.layer_runs] == [T]
    assert proof.verdict == "exact", proof.reasons


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_modules_are_replayed_in_float32(kind: type[nn.RNNBase]) -> None:
    module = kind(I, H, 2, dtype=torch.bfloat16)
    with rnndiag.probe(module) as probe:
        module(torch.randn(T, B, I).bfloat16())[0].square().mean().backward()
    (proof,) = probe.proofs
    assert proof.verdict == "exact", proof.reasons
    assert proof.worst < 1e-2
    assert {run.dtype for run in probe.layer_runs} == {torch.float32}


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_loss_scale_is_divided_out(scale: float) -> None:
    module, x = nn.LSTM(I, H), torch.randn(T, B, I)
    plain = torch.autograd.grad(module(x)[0].square().mean(), module.weight_hh_l0)[0]
    with rnndiag.probe(module, loss_scale=lambda: scale) as probe:
        (module(x)[0].square().mean() * scale).backward()
    (run,) = probe.layer_runs
    assert run.scale == scale
    assert torch.allclose(run.gradients["weight_hh"], plain, rtol=1e-5, atol=1e-9)
    assert probe.proofs[0].verdict == "exact"


def test_the_loss_scale_is_read_while_the_pass_runs() -> None:
    module, x = nn.GRU(I, H), torch.randn(T, B, I)
    scales = {"now": 8.0}
    with rnndiag.probe(module, loss_scale=lambda: scales["now"]) as probe:
        (module(x)[0].square().mean() * 8.0).backward()
        scales["now"] = 4.0
        (module(x)[0].square().mean() * 4.0).backward()
    first, second = probe.layer_runs
    assert (first.scale, second.scale) == (8.0, 4.0)
    assert torch.allclose(first.direct[0], second.direct[0])


def test_an_overflow_of_a_scaled_loss_is_no_number() -> None:
    module, x = nn.RNN(I, H), torch.randn(T, B, I)
    with rnndiag.probe(module, loss_scale=lambda: 2.0**16) as probe:
        (module(x)[0].square().mean() * torch.inf).backward()
    assert probe.proofs[0].verdict == "inexact"
    assert not probe.layer_runs[0].direct[0].isfinite().all()
