"""Odd loops: none is called exact and wrong."""

from __future__ import annotations

import pytest
import torch
from loops.odd_programs import EXACT, OPEN
from loops.programs.base import B, H, N, Program, State
from loops.test_listed_programs import matches_detaching, recorded
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
    assert "from a replay (a hook stands on its state)" in recording.reasons["cell"]
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


@pytest.mark.parametrize("name", ["AttendsToItsPast", "ExternalMemory", "UpdatedInPart"])
def test_carry_takes_all_that_leads_around_the_state(name: str) -> None:
    program = OPEN[name]()
    recording = recorded(program, rnndiag.carry)
    assert recording.verdict == "exact", recording.reasons
    program.watched = None
    matches_detaching(program, recording, "loop")


class Loop(nn.Module):
    """An LSTM cell whose state is scaled between the steps; where `carry` stands can be chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(2, H), nn.Linear(H, 1)

    def losses(self, x: Tensor, where: str = "", cut: int | None = None) -> list[Tensor]:
        """One loss a step; `cut`: the step before which the state is detached."""
        h = c = torch.zeros(B, H)
        found = []
        for t, now in enumerate(x):
            if t == cut:
                h, c = h.detach(), c.detach()
            if where == "head":
                h, c = rnndiag.carry(h, c, name="loop")
            h, c = self.cell(now, (0.9 * h, c))
            if where == "before the loss":
                h, c = rnndiag.carry(h, c, name="loop")
            found.append(self.head(h).square().mean())
            if where == "end":
                h, c = rnndiag.carry(h, c, name="loop")
        return found

    def bias(self, sequences: list[Tensor], width: int) -> float:
        """Of the window of so many steps, over all sequences."""
        own = list(self.cell.parameters())

        def gradient(width: int) -> Tensor:
            losses = [
                self.losses(x[: t + 1], cut=t - width + 1)[-1]
                for x in sequences
                for t in range(len(x))
            ]
            found = torch.autograd.grad(sum(losses), own, allow_unused=True)
            return torch.cat([g.flatten() for g in found if g is not None])

        whole = gradient(len(sequences[0]) + 1)
        return float((gradient(width) - whole).norm() / whole.norm())


@pytest.mark.parametrize("where", ["head", "before the loss", "end"])
def test_carry_may_stand_anywhere_in_the_step(where: str) -> None:
    loop, x = Loop(), torch.randn(7, B, 2)
    with rnndiag.probe(loop) as probe:
        sum(loop.losses(x, where)).backward()
    bias = probe.recording["window_bias", "loop"].values
    for width in range(1, 7):
        assert abs(bias[width] - loop.bias([x], width)) < 1e-9, width


@pytest.mark.parametrize("where", ["", "head"])
def test_sequences_one_after_another_are_cut_together(where: str) -> None:
    loop, x = Loop(), torch.randn(6, B, 2)
    sequences = [x, 0.7 * x.flip(0)]
    with rnndiag.probe(loop) as probe:
        sum(sum(loop.losses(one, where)) for one in sequences).backward()
    recording = probe.recording
    assert recording.verdict == "exact", recording.reasons
    bias = recording["window_bias", "loop" if where else "cell"].values
    for width in range(1, 6):
        assert abs(bias[width] - loop.bias(sequences, width)) < 1e-9, width


@pytest.mark.parametrize("where", ["", "head"])
def test_a_gradient_of_a_gradient_withdraws_the_lags(where: str) -> None:
    loop = Loop()
    with rnndiag.probe(loop) as probe:
        loss = sum(loop.losses(torch.randn(5, B, 2), where))
        slopes = torch.autograd.grad(loss, list(loop.parameters()), create_graph=True)
        (loss + sum(slope.square().sum() for slope in slopes)).backward()
    recording = probe.recording
    assert recording.verdict in ("open", "inexact")
    assert "a gradient of a gradient" in " ".join(recording.reasons.values())
    assert not any(("window_bias", layer) in recording for layer in recording.layers)


def test_a_loop_inside_of_a_reentrant_checkpoint_is_withdrawn() -> None:
    loop, x = Loop(), torch.randn(5, B, 2, requires_grad=True)
    with rnndiag.probe(loop) as probe:
        checkpoint(lambda x: sum(loop.losses(x)), x, use_reentrant=True).backward()
    assert "its state is changed in between" in probe.recording.reasons["cell"]
    assert ("window_bias", "cell") not in probe.recording
