"""The probe's own surface: what it yields, when, and what it says to a mistake."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rnndiag
from rnndiag.errors import BadArgument, CaptureFault


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
