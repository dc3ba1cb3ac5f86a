"""Losses multiplied by very small and very large numbers: nothing but the scale of the gradients changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rnndiag


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e30])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_float32_recordings_do_not_depend_on_the_size_of_the_loss(cell: str, scale: float) -> None:
    torch.manual_seed(0)
    model, x = getattr(nn, cell)(3, 5), torch.randn(8, 4, 3)
    found = []
    for factor in (1.0, scale):
        model.zero_grad()
        with rnndiag.probe(model) as probe:
            (model(x)[0].square().mean() * factor).backward()
        recording = probe.recording
        assert recording.verdict == "exact", recording.reasons
        assert not recording.reasons
        found.append(torch.as_tensor(recording["window_bias", "l0"].values))
    assert found[1].tolist() == pytest.approx(found[0].tolist(), rel=1e-3, abs=1e-5)
