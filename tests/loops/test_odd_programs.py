"""Odd loops: none is called exact and wrong."""

from __future__ import annotations

import pytest
import torch
from loops.listed_programs import B, H
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
