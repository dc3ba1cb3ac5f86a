"""Beside torch.compile: layers run as ever and are captured, compiled loops are refused, training stays the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnndiag
from rnndiag.errors import NotSupported

B, I, H, T = 2, 3, 4, 5
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    import torch._dynamo as dynamo

    torch.manual_seed(0)
    dynamo.reset()
    yield
    dynamo.reset()


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Linear(I, I), nn.LSTM(I, H), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.tanh(self.embed(x)))[0])


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(I, H)

    def forward(self, xs: Tensor) -> Tensor:
        h = xs.new_zeros(B, H)
        for x in xs:
            h = self.cell(x, h)
        return h


def train(watched: bool) -> tuple[list[Tensor], list[str]]:
    torch._dynamo.reset()
    torch.manual_seed(1)
    model = Tagger()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    verdicts = []
    for _ in range(4):
        optimizer.zero_grad()
        with rnndiag.probe(model) if watched else nullcontext() as probe:
            compiled(torch.randn(T, B, I)).square().mean().backward()
        if watched:
            verdicts += [proof.verdict for proof in probe.proofs]
        optimizer.step()
    return [p.detach() for p in model.parameters()], verdicts


def test_a_layer_in_a_compiled_model_is_captured_and_trains_the_same() -> None:
    watched, verdicts = train(watched=True)
    plain, _ = train(watched=False)
    assert verdicts == ["exact"] * 4
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))


def test_a_compiled_loop_is_refused_aloud() -> None:
    model = Loop()
    compiled: Any = torch.compile(model, backend="aot_eager")
    with pytest.raises(NotSupported, match=r"inside of torch\.compile"), rnndiag.probe(model):
        compiled(torch.randn(T, B, I))


def test_compiled_layers_are_refused_aloud() -> None:
    model = Tagger()
    compiled: Any = torch.compile(model, backend="aot_eager")
    x = torch.randn(T, B, I)
    compiles = torch._dynamo.config.patch(allow_rnn=True)
    refused = pytest.raises(NotSupported, match="rnn runs inside")
    with compiles, refused, rnndiag.probe(model):
        compiled(x)
