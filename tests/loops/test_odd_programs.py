"""Odd loops: none is called exact and wrong."""

from __future__ import annotations

import pytest
import torch
from loops.listed_programs import B, H, N, Program, State
from loops.odd_programs import EXACT, OPEN
from loops.test_listed_programs import matches_detaching, recorded
from torch import Tensor, nn

import rnndiag

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("name", sorted(EXACT))
def test_what_is_called_exact_matches_detaching_by_hand(name: str) -> None:
    program = EXACT[name]()
    recording = recorded(program, None if program.watched else rnndiag.carry)
    assert recording.verdict == "exact", recording.reasons
    layers = [layer for layer in recording.layers if ("window_bias", layer) in recording]
    assert len(layers) == 1
    matches_detaching(program, recording, layers[0])


@pytest.mark.parametrize("name", sorted(OPEN))
def test_what_leads_around_the_state_is_withdrawn(name: str) -> None:
    recording = recorded(OPEN[name](), None)
    assert recording.verdict in ("open", "unverified")
    assert "open: " in recording.reasons["cell"]
    assert ("window_bias", "cell") not in recording


class HookOnC(Program):
    """A hook halves the gradient of c, which h is made of within the step too."""

    def build(self) -> None:
        self.cell, self.head = nn.LSTMCell(N, H), nn.Linear(H, 1)

    def start(self) -> State:
        return {"h": torch.zeros(B, H), "c": torch.zeros(B, H)}

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        h, c = self.cell(self.x[t], (old["h"], old["c"]))
        if c.requires_grad:
            c.register_hook(lambda gradient: gradient * 0.5)
        return {"h": h, "c": c}, self.head(h)


def test_a_hook_within_a_step_is_named_where_contributions_miss_it() -> None:
    program = HookOnC()
    recording = recorded(program, None)
    assert recording.verdict == "inexact"
    assert "a hook stands on its state" in recording.reasons["cell"]
    bias = recording["window_bias", "cell"].values
    own = list(program.cell.parameters())
    whole = program.window(program.T, own)
    for width in range(1, program.T):
        by_hand = float((program.window(width, own) - whole).norm() / whole.norm())
        assert abs(bias[width] - by_hand) < 1e-9, width


def test_a_momentum_left_out_of_carry_is_found() -> None:
    a, b = nn.Linear(H, H), nn.Linear(H, H)
    with rnndiag.probe(nn.ModuleList([a, b])) as probe:
        h = v = torch.zeros(B, H)
        for x in torch.randn(8, B, H):
            h = rnndiag.carry(h, name="loop")
            v = 0.7 * v + a(x)
            h = (v + b(h)).tanh()
        h.square().sum().backward()
    assert "no marked state" in probe.recording.reasons["loop"]


def test_states_pooled_for_one_loss_count_from_where_they_stand() -> None:
    cell, x = nn.GRUCell(2, H), torch.randn(6, B, 2)

    def pooled(stacked: bool) -> Tensor:
        with rnndiag.probe(cell) as probe:
            h = total = torch.zeros(B, H)
            states = []
            for step in x:
                h = cell(step, h)
                states.append(h)
                total = total + h
            (torch.stack(states).sum(0) if stacked else total).square().sum().backward()
        assert probe.recording.verdict == "exact"
        return torch.as_tensor(probe.recording["window_bias", "cell"].values)

    assert torch.allclose(pooled(True), pooled(False), rtol=1e-9)
