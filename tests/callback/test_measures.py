"""What is measured is what the engine says of the very step: sizes, proofs, causes, sampling and scaling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fits import Net, fit
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

import rnndiag
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.measures import MEASURES, Extent, Subject, chosen_measures, take
from rnndiag.recorder.measures.coarse import coarse
from rnndiag.store.quantities import QUANTITIES


def watched(net: nn.Module, x: Tensor, weight: Tensor | None = None, hx: Any = None) -> Any:
    """A probe over one step; `weight` (T,) weighs the losses."""
    with rnndiag.probe(net) as seen:
        out = net(x, hx)[0]
        loss = (out**2).sum((0, 2)) if weight is None else (out.sum((1, 2)) * weight)
        loss.sum().backward()
    return seen


def scaled_orthogonal(gain: float, units: int = 6) -> nn.RNN:
    """Near-linear states whose Jacobian is gain times orthogonal."""
    torch.manual_seed(0)
    net = nn.RNN(2, units, bias=False)
    with torch.no_grad():
        net.weight_hh_l0.copy_(gain * torch.linalg.qr(torch.randn(units, units))[0])
        net.weight_ih_l0.mul_(1e-3)
    return net


def test_the_recording_of_a_probe_has_every_group() -> None:
    torch.manual_seed(0)
    recording = watched(nn.LSTM(3, 4), torch.randn(9, 5, 3)).recording
    assert recording.verdict == "exact"
    groups = {QUANTITIES[name].group for name in recording.quantities}
    assert groups >= set(MEASURES)
    assert recording.layers == ("l0",)


def test_norms_over_time_are_those_of_plain_autograd() -> None:
    torch.manual_seed(1)
    net = nn.RNN(3, 4).double()
    x = torch.randn(6, 5, 3).double()
    recording = watched(net, x).recording
    h, states = torch.zeros(5, 4).double(), []
    for now in x:
        h = torch.tanh(
            now @ net.weight_ih_l0.T + net.bias_ih_l0 + h @ net.weight_hh_l0.T + net.bias_hh_l0
        )
        h.retain_grad()
        states.append(h)
    loss = sum((state**2).sum() for state in states)
    net.zero_grad()
    loss.backward()
    deltas = torch.stack([state.grad.norm(dim=1) for state in states])
    stored = recording["adjoint_norm", "l0"]
    np.testing.assert_allclose(stored.sel(stat="mean").values, deltas.mean(1), rtol=1e-5)
    expected = np.quantile(deltas.numpy(), 0.95, axis=1)
    np.testing.assert_allclose(stored.sel(stat="q95").values, expected, rtol=1e-5)
    direct = torch.stack([2 * state.detach() for state in states]).norm(dim=2)
    stored = recording["direct_gradient_norm", "l0"].sel(stat="mean").values
    np.testing.assert_allclose(stored, direct.mean(1), rtol=1e-5)
    sizes = recording["gradient_norm", "l0"].sel(parameter="weight_hh").values
    assert sizes == pytest.approx(float(net.weight_hh_l0.grad.norm()), rel=1e-5)


def test_padding_has_no_place_in_any_mean() -> None:
    torch.manual_seed(2)
    net, lengths = nn.GRU(3, 4), torch.tensor([6, 2, 4])
    x = torch.randn(6, 3, 3)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    with rnndiag.probe(net) as seen:
        net(packed)[0].data.square().sum().backward()
    recording = seen.recording
    assert recording["valid_samples", "l0"].values.tolist() == [3, 3, 2, 2, 1, 1]
    mean = recording["state_norm", "l0"].sel(stat="mean").values
    alone = net(x[:, :1])[0][4:, 0].norm(dim=1).detach()
    np.testing.assert_allclose(mean[4:], alone, rtol=1e-5)


CAUSES = {
    "decay": (0.5, None, None),
    "loss": (1.0, [1.0, 1.0] + [0.0] * 18, None),
    "detach": (1.0, None, torch.full((1, 3, 6), 1e-3)),
    "none": (1.0, [0.0] * 19 + [1.0], None),
}


@pytest.mark.parametrize("kind", CAUSES)
def test_why_the_reach_is_what_it_is(kind: str) -> None:
    gain, weight, hx = CAUSES[kind]
    weights = None if weight is None else torch.tensor(weight)
    seen = watched(scaled_orthogonal(gain), 1e-3 * torch.randn(20, 3, 2), weights, hx)
    told = seen.recording.notes["cause"]["l0"]
    assert told["kind"] == kind, told
    assert "l0" in told["sentence"]
    if kind == "decay":
        assert "changes the gradient by 0.5 a step" in told["sentence"]
        assert math.exp(seen.recording["credit_profile", "l0"].values[1, 0]) == pytest.approx(
            0.5, rel=1e-3
        )
    if kind == "loss":
        assert "first 2 of 20 steps" in told["sentence"]


def test_silence_of_the_loss_is_a_cause() -> None:
    seen = watched(scaled_orthogonal(1.0), torch.randn(5, 3, 2), torch.zeros(5))
    assert seen.recording.notes["cause"]["l0"]["kind"] == "loss"


def test_what_was_sampled_is_said() -> None:
    torch.manual_seed(0)
    seen = watched(nn.LSTM(2, 3), torch.randn(8, 20, 2))
    subject = Subject(tuple(seen.layer_runs), extent=Extent(samples=4))
    taken = take(subject, ["gates"], Faults(strict=True))
    assert taken.notes["sampling"] == {"l0": "gates: 4 of 20 sequences"}
    everything = Subject(tuple(seen.layer_runs), extent=Extent(samples=None))
    assert "sampling" not in take(everything, ["gates"], Faults(strict=True)).notes


def test_numbers_that_are_not_finite_leave_the_costly_measures_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 2, 3)
    x[2, 1, 0] = torch.nan
    recording = watched(nn.GRU(3, 4), x).recording
    left = recording.notes["not_measured"]
    assert left["lags of l0"] == "its inputs, states or gradients are not finite"
    assert recording["nonfinite_states", "l0"].values.tolist() == [0, 0, 4, 4, 4]
    assert "adjoint_norm" in recording.quantities
    mean = recording["state_norm", "l0"].sel(stat="mean").values
    assert np.isfinite(mean[:2]).all()
    assert np.isnan(mean[2:]).all()


def test_accumulated_batches_are_recorded_as_if_alone(diagnostics: Any) -> None:
    one, four = diagnostics("one", measures=["contributions"]), diagnostics("four")
    fit(Net, [one])
    fit(Net, [four], accumulate_grad_batches=4, max_epochs=2)
    alone, shared = (rnndiag.open_run(cb.run_dir).at(0) for cb in (one, four))
    for quantity in ("gradient_norm", "adjoint_norm", "contribution_norm"):
        np.testing.assert_allclose(
            alone[quantity, "rnn.l0"].values, shared[quantity, "rnn.l0"].values, rtol=1e-5
        )
    assert shared.notes["scaling"] == {"loss_scale": 1.0, "accumulate": 4}
    assert "scaling" not in alone.notes


# torch's own word that float16 autocast on a CPU is slow, and Lightning's on the scaler
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_loss_scale_is_divided_out(diagnostics: Any) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    options = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    plain, scaled = diagnostics("plain", measures=["contributions"]), diagnostics("scaled")
    fit(lambda: Net("GRU"), [plain])
    fit(lambda: Net("GRU"), [scaled], **options)
    alone, mixed = (rnndiag.open_run(cb.run_dir).at(0) for cb in (plain, scaled))
    assert mixed.notes["scaling"]["loss_scale"] == 1024.0
    assert mixed.verdict == "exact", mixed.reasons
    np.testing.assert_allclose(
        alone["gradient_norm", "rnn.l0"].values,
        mixed["gradient_norm", "rnn.l0"].values,
        rtol=2e-2,
    )
    norms = [recording["total_gradient_norm"].values for recording in (alone, mixed)]
    assert norms[0] == pytest.approx(norms[1], rel=2e-2)


def test_long_matrices_are_kept_by_blocks() -> None:
    size = 600
    matrix = np.arange(size * size, dtype=float).reshape(size, size)
    found = coarse("credit_matrix", matrix, "l0")
    assert found.values.shape == (200, 200)
    assert found.values[3, 5] == matrix[9:12, 15:18].max()
    assert found.coordinates["output"][3] == "9"
    matrix[:3, :3] = np.nan
    assert np.isnan(coarse("credit_matrix", matrix, "l0").values[0, 0])


def test_measures_are_chosen_by_name_in_one_order() -> None:
    assert chosen_measures(None) == tuple(MEASURES)
    assert chosen_measures(["lags", "contributions"]) == ("contributions", "lags")
