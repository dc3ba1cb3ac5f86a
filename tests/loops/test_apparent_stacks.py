"""Two layers that look like a stack by their values, and of which the upper one sends no such gradient down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnndiag

pytestmark = pytest.mark.usefixtures("double")


class Reversed(torch.autograd.Function):
    """Hands values on and turns gradients around."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -0.5 * gradient


@pytest.mark.parametrize(
    ("between", "stacked"),
    [(lambda y: y, True), (lambda y: y.detach(), False), (Reversed.apply, False)],
    ids=["nothing", "detach", "reversal"],
)
def test_only_layers_that_send_their_gradient_down_are_a_stack(
    between: Callable[[Tensor], Tensor], stacked: bool
) -> None:
    model = nn.ModuleDict({"a": nn.GRU(2, 4), "b": nn.GRU(4, 4)})
    with rnndiag.probe(model) as probe:
        y = model["a"](torch.randn(6, 3, 2))[0]
        loss = model["b"](between(y))[0].square().sum()
        if between(y).requires_grad is False:
            loss = loss + y[-1].sum()
        loss.backward()
    recording = probe.recording
    assert ("window_bias", "a.l0..b.l0") in recording or not stacked
    assert ("window_bias", "a.l0..b.l0") not in recording or stacked
