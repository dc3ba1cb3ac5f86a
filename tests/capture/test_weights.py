"""Weights that are not plain parameters, gradients that others change, and gradients from elsewhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import reference
import torch
from capture.by_hand import run_both
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

import rnndiag

B, I, H, T = 3, 2, 4, 5
pytestmark = pytest.mark.usefixtures("double")


def exact(probe: Any) -> None:
    assert probe.proofs
    for proof in probe.proofs:
        assert proof.verdict == "exact", proof.reasons
        assert proof.residual
        assert proof.worst <= 1e-12


def check_against(probe: Any, module: nn.Module, weights: dict[str, Tensor], x: Tensor) -> None:
    """The one run of the probe is that of the module with these weights, loss y²."""
    (run,) = probe.layer_runs
    used = {k: v.detach().requires_grad_() for k, v in weights.items()}
    out, _, tapes = reference.unroll_module(module, x, None, None, (), used)
    out.square().sum().backward()
    adj = rnndiag.adjoints(run)
    for found, expected in zip(adj.parts, tapes["l0"].adjoints(), strict=True):
        assert reference.relative(found, expected) < 1e-10
    for key in run.weights:
        found = rnndiag.contributions(run, key)
        assert reference.relative(found, tapes["l0"].contributions(key)) < 1e-10


@pytest.mark.parametrize("wrap", [weight_norm, spectral_norm, orthogonal])
def test_a_parametrized_weight_is_the_effective_one(wrap: Any) -> None:
    module, x = nn.LSTM(I, H), torch.randn(T, B, I)
    wrap(module, "weight_hh_l0")
    module.eval()  # a spectral norm moves with every use in training
    with rnndiag.probe(module) as probe:
        module(x)[0].square().sum().backward()
    exact(probe)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    check_against(probe, module, {name: getattr(module, name) for name in names}, x)
    assert set(probe.proofs[0].residual) == set(names)


@pytest.mark.parametrize("cached", [False, True], ids=["computed anew", "cached"])
def test_a_parametrized_cell_in_a_loop_is_one_recurrence(cached: bool) -> None:
    cell, xs = nn.GRUCell(I, H), torch.randn(T, B, I)
    weight_norm(cell, "weight_hh")

    def loop() -> Tensor:
        h = torch.zeros(B, H)
        for x in xs:
            h = cell(x, h)
        return h.square().sum()

    with rnndiag.probe(cell) as probe:
        if cached:
            with parametrize.cached():
                loop().backward()
        else:
            loop().backward()
    exact(probe)
    assert [run.T for run in probe.layer_runs] == [T]


def test_weights_tied_between_layers_are_proved_together() -> None:
    x = torch.randn(T, B, I)
    one, other = nn.GRU(I, H), nn.GRU(I, H)
    other.weight_hh_l0 = one.weight_hh_l0
    with rnndiag.probe(nn.ModuleDict({"one": one, "other": other})) as probe:
        (one(x)[0] * other(x)[0]).sum().backward()
    exact(probe)
    assert probe.layer_runs[1].parameters["weight_hh"] == "one.weight_hh_l0"
    assert len(probe.proofs[0].residual) == 7


def test_frozen_weights() -> None:
    module, x = nn.LSTM(I, H), torch.randn(T, B, I)
    module.requires_grad_(False)
    module.weight_hh_l0.requires_grad_(True)
    with rnndiag.probe(module) as probe:
        module(x)[0].square().sum().backward()
    exact(probe)
    assert set(probe.proofs[0].residual) == {"weight_hh_l0"}
    module.requires_grad_(False)
    with rnndiag.probe(module) as probe:
        module(x.requires_grad_())[0].square().sum().backward()
    assert probe.proofs[0].verdict == "unverified"
    assert len(probe.layer_runs) == 1


def test_weights_that_are_unfrozen_inside() -> None:
    module, x = nn.GRU(I, H).requires_grad_(False), torch.randn(T, B, I)
    with rnndiag.probe(module) as probe:
        module(x)
        module.requires_grad_(True)
        module(x)[0].square().sum().backward()
    exact(probe)
    assert len(probe.proofs[0].residual) == 4


def test_functional_call_uses_the_weights_it_is_given() -> None:
    module, x = nn.GRU(I, H), torch.randn(T, B, I)
    given = {k: torch.randn_like(v).requires_grad_() for k, v in module.named_parameters()}
    with rnndiag.probe(module) as probe:
        torch.func.functional_call(module, given, (x,))[0].square().sum().backward()
    exact(probe)
    check_against(probe, module, given, x)


def test_a_weight_in_another_memory_layout() -> None:
    module, x = nn.LSTM(I, H), torch.randn(T, B, I)
    module.weight_hh_l0 = nn.Parameter(torch.randn(H, 4 * H).t())
    assert not module.weight_hh_l0.is_contiguous()
    both = run_both({"rnn": module}, lambda rnn: rnn(x)[0].square().sum())
    both.check({"rnn.l0": ("rnn", [0], "l0")}, {})


def test_weights_that_move_after_the_forward_do_not_matter() -> None:
    module, x = nn.RNN(I, H), torch.randn(T, B, I)
    before = copy.deepcopy(module)
    with rnndiag.probe(module) as probe:
        module(x)[0].square().sum().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.data.mul_(2.0)  # as a fused optimizer: the version counter stays
                parameter.grad.zero_()
    exact(probe)
    check_against(probe, before, dict(before.named_parameters()), x)


def test_hooks_of_others_on_weights_and_outputs() -> None:
    module, x = nn.LSTM(I, H), torch.randn(T, B, I)
    module.weight_hh_l0.register_hook(lambda gradient: 0.0 * gradient)
    with rnndiag.probe(module) as probe:
        out, _ = module(x)
        out.register_hook(lambda gradient: 3 * gradient)
        out.square().sum().backward()
    exact(probe)
    assert not module.weight_hh_l0.grad.any()
    assert torch.allclose(probe.layer_runs[0].direct[0], 6 * out.detach())


@pytest.mark.parametrize("penalty", [lambda w: w.square().sum(), lambda w: w.abs().sum()])
def test_a_penalty_on_a_weight_is_named_and_no_failure(penalty: Any) -> None:
    module, x = nn.LSTM(I, H), torch.randn(T, B, I)
    with rnndiag.probe(module) as probe:
        loss = module(x)[0].square().sum()
        (loss + sum(penalty(p) for p in module.parameters())).backward()
    (proof,) = probe.proofs
    assert proof.verdict == "exact"
    assert len(proof.reasons) == 4
    assert all("outside of the recurrent calls" in reason for reason in proof.reasons)


def test_any_other_penalty_is_seen_by_the_biases_that_stay_exact() -> None:
    module, x = nn.GRU(I, H), torch.randn(T, B, I)
    with rnndiag.probe(module) as probe:
        weight = module.weight_hh_l0
        penalty = (weight.T @ weight - torch.eye(H)).square().sum()
        (module(x)[0].square().sum() + penalty).backward()
    (proof,) = probe.proofs
    assert proof.verdict == "exact"
    assert [reason.partition(":")[0] for reason in proof.reasons] == ["weight_hh_l0"]


def test_a_call_that_nobody_saw_is_no_silence() -> None:
    module, x = nn.LSTM(I, H), torch.randn(T, B, I)
    with rnndiag.probe(module) as probe:
        (module(x)[0] * module.forward(x.flip(0))[0]).sum().backward()
    assert probe.proofs[0].verdict == "inexact"
    with rnndiag.probe(module) as probe:
        module.forward(x)[0].sum().backward()
    assert probe.proofs[0].verdict != "exact"
    with pytest.raises(rnndiag.errors.NotSupported, match="no call that used it was seen"):
        probe.layer_runs


def test_a_gradient_of_a_gradient_is_marked() -> None:
    module, x = nn.RNN(I, H), torch.randn(T, B, I, requires_grad=True)
    with rnndiag.probe(module) as probe:
        loss = module(x)[0].square().sum()
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + slope.square().sum()).backward()
    assert probe.proofs[-1].verdict == "inexact"
    assert "gradient of a gradient" in probe.proofs[-1].reasons[0]
