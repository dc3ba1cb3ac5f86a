"""The probe's own surface: what it yields, when, and what it says to a mistake."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rnndiag
from rnndiag.errors import BadArgument, CaptureFault, NotSupported


def test_its_recording_is_made_once_and_holds_the_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.GRU(3, 4))
    with rnndiag.probe(model) as probe:
        model(torch.randn(5, 2, 2))[0].square().sum().backward()
    recording = probe.recording
    assert recording is probe.recording
    assert recording.verdict == "exact"
    norms = recording["contribution_norm", "1.l0"]
    assert norms.values.shape == (4, 5)
    proved = probe.layer_runs[0]
    expected = rnndiag.contributions(proved, "weight_hh").flatten(1).norm(dim=1)
    keys = list(proved.weights)
    assert torch.allclose(
        torch.as_tensor(norms.values[keys.index("weight_hh")]).float(), expected, rtol=1e-4
    )


def test_a_recording_of_nothing_is_refused() -> None:
    with rnndiag.probe(nn.GRU(2, 3)) as probe:
        pass
    with pytest.raises(CaptureFault, match="No backward pass"):
        probe.recording


def test_layer_runs_can_be_looked_at_inside() -> None:
    model, x = nn.GRU(2, 3), torch.randn(4, 2, 2)
    with rnndiag.probe(model) as probe:
        model(x)[0].sum().backward()
        assert [run.name for run in probe.layer_runs] == ["l0"]
        model(x)[0].sum().backward()
        assert [run.name for run in probe.layer_runs] == ["l0", "l0#2"]
    assert [run.name for run in probe.layer_runs] == ["l0", "l0#2"]
    assert [proof.verdict for proof in probe.proofs] == ["exact", "exact"]


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(BadArgument, match="given a function"):
        rnndiag.probe(lambda x: x)


def test_it_may_be_entered_again_and_keeps_what_it_saw() -> None:
    model, x = nn.GRU(2, 3), torch.randn(4, 2, 2)
    probe = rnndiag.probe(model)
    for _ in range(2):
        with probe:
            model(x)[0].sum().backward()
    assert len(probe.layer_runs) == len(probe.proofs) == 2
    first = probe.recording
    with probe:
        model(x)[0].sum().backward()
        with pytest.raises(BadArgument, match="watching already"), probe:
            pass
    assert len(probe.layer_runs) == 3
    assert len(probe.recording.layers) > len(first.layers)


def test_a_forward_pass_that_nobody_saw_is_told_once_for_all_its_weights() -> None:
    model = nn.GRU(2, 3)
    loss = model(torch.randn(4, 2, 2))[0].sum()
    with rnndiag.probe(model) as probe:
        loss.backward()
    with pytest.raises(NotSupported, match="forward pass inside of the probe") as told:
        probe.layer_runs
    assert str(told.value).count("no call that used it was seen") == 1


def test_a_bare_number_is_no_loss_scale() -> None:
    with pytest.raises(BadArgument, match="loss_scale"):
        rnndiag.probe(nn.GRU(2, 3), loss_scale=2.0)


def test_steps_are_names_or_classes() -> None:
    with pytest.raises(BadArgument, match="no module 'decoder'"):
        rnndiag.probe(nn.GRU(2, 3), steps="decoder")
    with pytest.raises(BadArgument, match="3 was named"):
        rnndiag.probe(nn.GRU(2, 3), steps=[3])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_can_be_looked_at_in_inference_mode(dropout: float) -> None:
    model = nn.LSTM(2, 3, 2, dropout=dropout)
    with rnndiag.probe(model) as probe:
        model(torch.randn(4, 2, 2))[0].square().sum().backward()
    with torch.inference_mode():
        assert probe.proofs[0].verdict == "exact"
        assert probe.recording.verdict == "exact"


@pytest.mark.filterwarnings("ignore")  # tracing warns of itself
def test_a_traced_model_is_refused() -> None:
    traced = torch.jit.trace(nn.GRU(2, 3), torch.randn(4, 2, 2))
    with pytest.raises(NotSupported, match="traced by torch"):
        rnndiag.probe(traced)
