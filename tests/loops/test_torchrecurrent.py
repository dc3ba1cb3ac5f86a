"""The layers of torchrecurrent, where it is installed (the extra `cells`): measured as detaching would, or a reason."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

import rnndiag

pytestmark = pytest.mark.usefixtures("double")

NAMES = (
    "AntisymmetricRNN",
    "ATR",
    "BR",
    "CFN",
    "coRNN",
    "DSGU",
    "FastGRNN",
    "FastRNN",
    "GatedAntisymmetricRNN",
    "IndRNN",
    "IntersectionRNN",
    "JANET",
    "LEM",
    "LiGRU",
    "LightRU",
    "MCLSTM",
    "MGU",
    "MinimalRNN",
    "MiRU1",
    "MiRU2",
    "MultiplicativeLSTM",
    "MUT1",
    "MUT2",
    "MUT3",
    "NAS",
    "NBR",
    "OriginalLSTM",
    "PeepholeLSTM",
    "RAN",
    "ResLSTM",
    "SCRN",
    "SGRN",
    "SGU",
    "STAR",
    "TGRU",
    "TLSTM",
    "TRNN",
    "UGRNN",
    "UnICORNN",
    "WMCLSTM",
)
T = 5

needs_it = pytest.mark.skipif(
    importlib.util.find_spec("torchrecurrent") is None, reason="torchrecurrent is not installed"
)


def layer_of(name: str) -> Any:
    import torchrecurrent  # type: ignore[import-not-found]

    return getattr(torchrecurrent, name)(4, 4).double()


def detached(state: Any) -> Any:
    return state.detach() if isinstance(state, Tensor) else tuple(map(detached, state))


def windows_by_hand(layer: Any, x: Tensor) -> list[Tensor]:
    """The gradient of the loss at the end through the last 1 .. T steps."""
    parameters, found = list(layer.parameters()), []
    for width in range(1, T + 1):
        start = () if width == T else (detached(layer(x[: T - width])[1]),)
        loss = layer(x[T - width :], *start)[0][-1].square().sum()
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        whole = [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)
        ]
        found.append(torch.cat([g.flatten() for g in whole]))
    return found


@needs_it
@pytest.mark.parametrize("name", NAMES)
def test_layers_match_detaching_by_hand(name: str) -> None:
    layer, x = layer_of(name), torch.randn(T, 2, 4)
    layer(x)[0][-1].square().sum().backward()
    plain = [value.grad for value in layer.parameters()]
    layer.zero_grad()
    with rnndiag.probe(layer) as probe:
        layer(x)[0][-1].square().sum().backward()
    for gradient, value in zip(plain, layer.parameters(), strict=True):
        assert gradient is None or torch.equal(gradient, value.grad)
    recording = probe.recording
    assert recording.verdict == "exact", recording.reasons
    bias, by_hand = recording["window_bias", "cells.0"], windows_by_hand(layer, x)
    lags = list(bias.coordinates["lag"])
    for width in range(1, T):
        off = float((by_hand[width - 1] - by_hand[-1]).norm() / by_hand[-1].norm())
        found = float(bias.values[lags.index(str(width))]) if str(width) in lags else 0.0
        assert abs(found - off) < 1e-9, width


@needs_it
def test_a_cell_with_a_delayed_state_is_open() -> None:
    layer = layer_of("tauGRU")
    with rnndiag.probe(layer) as probe:
        layer(torch.randn(T, 2, 4))[0].square().sum().backward()
    assert "goes through no state in between" in probe.recording.reasons["cells.0"]
    assert ("window_bias", "cells.0") not in probe.recording
