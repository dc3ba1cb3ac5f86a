"""`rnndiag.carry`: an identity outside of a recording, and a mark in any loop inside of one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import rnndiag

pytestmark = pytest.mark.usefixtures("double")


def test_outside_of_a_recording_it_returns_its_arguments() -> None:
    h, c = torch.randn(2, 3, requires_grad=True), {"a": torch.randn(2)}
    assert rnndiag.carry(h) is h
    assert rnndiag.carry(h, c, None) == (h, c, None)
    assert rnndiag.carry(h, c)[1] is c


@dataclass
class Memory:
    h: Tensor
    old: Tensor | None = None


class Blend(nn.Module):
    """A complex state in a dataclass that starts as None, mixed with the state before the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.complex(torch.rand(4) * 0.9, torch.rand(4) * 0.2))
        self.x = torch.randn(8, 3, 4)

    def run(self, cut: int | None = None, carry: bool = False) -> Tensor:
        memory: Memory | None = None
        for t, x in enumerate(self.x):
            if cut is not None and memory is not None and t == len(self.x) - cut:
                old = memory.old
                memory = Memory(memory.h.detach(), None if old is None else old.detach())
            if carry:
                memory = rnndiag.carry(memory, name="blend")
            h = torch.zeros(3, 4) + 0j if memory is None else memory.h
            old = None if memory is None else memory.old
            new = self.decay * h + x * self.decay
            memory = Memory(new if old is None else 0.8 * new + 0.2 * old, h)
        assert memory is not None
        return memory.h.abs().square().mean()


def test_complex_dataclass_state_matches_detaching_by_hand() -> None:
    model = Blend()
    with rnndiag.probe(model) as probe:
        model.run(carry=True).backward()
    recording = probe.recording
    assert recording.verdict == "exact", recording.reasons

    def gradient(cut: int | None) -> Tensor:
        (found,) = torch.autograd.grad(model.run(cut), model.decay)
        return found

    whole, bias = gradient(None), recording["window_bias", "blend"]
    for window in (1, 2, 4, 7):
        by_hand = float((gradient(window) - whole).abs().square().sum().sqrt())
        at = list(bias.coordinates["lag"]).index(str(window))
        assert abs(by_hand / float(whole.abs().square().sum().sqrt()) - bias.values[at]) < 1e-9


def test_a_state_left_out_of_carry_is_named_as_open() -> None:
    cell, head, xs = nn.GRUCell(3, 4), nn.Linear(4, 1), torch.randn(6, 2, 2)
    model = nn.ModuleList([cell, head])
    with rnndiag.probe(model) as probe:
        h, y = torch.zeros(2, 4), torch.zeros(2, 1)
        for x in xs:
            h = rnndiag.carry(h, name="half")
            h = cell(torch.cat([x, y], -1), h)
            y = head(h)
        y.square().sum().backward()
    recording = probe.recording
    assert recording.verdict == "open"
    assert "goes through no state in between" in recording.reasons["half"]
    assert ("window_bias", "half") not in recording


def test_warm_up_cycles_without_gradient_are_not_counted() -> None:
    block, x = nn.Linear(4, 4), torch.randn(2, 4)
    with rnndiag.probe(block) as probe:
        h = torch.zeros(2, 4)
        with torch.no_grad():
            for _ in range(5):
                h = rnndiag.carry(h, name="cycles")
                h = block(x + h).tanh()
        for _ in range(3):
            h = rnndiag.carry(h, name="cycles")
            h = block(x + h).tanh()
        h.square().sum().backward()
    assert len(probe.recording["window_bias", "cycles"].values) == 4
