"""A recurrent policy with episodes that end: from the rollout to the answer how far back its gradient reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from fits import assert_same, fit
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rnndiag

STEPS, GAMES, HIDDEN = 24, 6, 8


class Policy(L.LightningModule):
    """An LSTM called step by step, with the state masked where an episode begins; REINFORCE with a loss at its end."""

    def __init__(self, kind: str = "LSTM", layers: int = 1) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(2, HIDDEN, layers)
        self.act = nn.Linear(HIDDEN, 1)

    def rollout(self, begins: Tensor, noise: Tensor, hint: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the logits of all steps (T, B)."""
        count = 2 if isinstance(self.rnn, nn.LSTM) else 1
        state = (torch.zeros(self.rnn.num_layers, GAMES, HIDDEN),) * count
        logits = []
        for t in range(STEPS):
            seen = torch.stack([hint[t] * begins[t], noise[t]], 1)
            state = tuple((1.0 - begins[t]).view(1, -1, 1) * part for part in state)
            out, state = self.rnn(seen[None], state if count > 1 else state[0])
            state = state if count > 1 else (state,)
            logits.append(self.act(out[0]).squeeze(1))
        ends = torch.cat([begins[1:], torch.ones(1, GAMES)])
        choice = torch.distributions.Bernoulli(logits=torch.stack(logits))
        action = (noise > 0).float()
        gain = (2 * action - 1) * hint * ends
        return -(choice.log_prob(action) * gain).sum() / GAMES, choice.logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        begins, noise, hint = (part.T for part in batch)
        return self.rollout(begins, noise, hint)[0]

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


def games(batches: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T): where episodes begin, noise, and the hint of each episode at all of its steps."""
    draw = torch.Generator().manual_seed(3)
    shape = (batches * GAMES, STEPS)
    begins = torch.rand(shape, generator=draw) < 0.15
    begins[:, 0] = True
    hint = (torch.rand(shape, generator=draw) < 0.5) * 2.0 - 1.0
    latest = torch.where(begins, torch.arange(STEPS), 0).cummax(1).values
    return begins.float(), torch.randn(shape, generator=draw), hint.gather(1, latest)


@pytest.mark.parametrize(("kind", "layers"), [("LSTM", 1), ("GRU", 2)])
def test_the_reach_of_a_policy_is_told(kind: str, layers: int) -> None:
    torch.manual_seed(0)
    policy = Policy(kind, layers)
    begins, noise, hint = (part.T for part in games())
    with rnndiag.probe(policy) as probe:
        policy.rollout(begins, noise, hint)[0].backward()
    assert probe.proofs[0].verdict == "exact"
    assert probe.proofs[0].reasons == ()
    for run in probe.layer_runs:
        assert int(begins.sum()) == run.B
        assert 1 < run.T < STEPS
        reach = rnndiag.reach(rnndiag.lag_sweep(run).profile.log)
        assert reach.reached
        assert 1.0 < reach.value <= run.T
    assert probe.recording.notes["resets"].keys() == {run.name for run in probe.layer_runs}


def test_the_credit_of_a_loss_is_what_autograd_says_and_stops_at_the_reset() -> None:
    torch.manual_seed(0)
    cell, head = nn.GRUCell(2, HIDDEN).double(), torch.randn(HIDDEN).double()
    begins, noise, hint = (part.T.double() for part in games())

    def play() -> tuple[Tensor, list[Tensor]]:
        """The outputs (T, B), and the states of all steps."""
        h, states = torch.zeros(GAMES, HIDDEN).double(), []
        for t in range(STEPS):
            h = cell(torch.stack([hint[t], noise[t]], 1), h * (1.0 - begins[t])[:, None])
            states.append(h)
        return torch.tanh(torch.stack(states) @ head), states

    with rnndiag.probe(cell) as probe:
        play()[0].sum().backward()
    (run,) = probe.layer_runs
    outputs, states = play()
    total, count = torch.zeros(run.T, run.T).double(), torch.zeros(run.T, 1).double()
    for t, b in begins.nonzero().tolist():
        for u in range(t, STEPS):
            if u > t and begins[u, b]:
                break
            sent = torch.autograd.grad(outputs[u, b], states[: u + 1], retain_graph=True)
            assert not any(gradient[b].any() for gradient in sent[:t])  # what was before the reset
            total[u - t, : u - t + 1] += torch.stack([g[b].norm() for g in sent[t:]])
            count[u - t] += 1
    assert torch.allclose(rnndiag.credit_matrix(run), total / count, rtol=1e-10, atol=1e-14)


def test_training_a_policy_is_recorded_and_not_changed(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(*games(4)), GAMES)
    plain = fit(Policy, data=data)
    diagnostics = rnndiag.GradientDiagnostics(
        tmp_path / "run", every_n_steps=1, screen=False, strict=True
    )
    seen = fit(Policy, [diagnostics], data=data)
    assert_same(plain, seen)
    run = rnndiag.open_run(tmp_path / "run")
    assert run.layers == ("rnn.l0",)
    assert {one.verdict for one in run.recordings if one.phase == "train"} == {"exact"}
    assert "a time step counts from the last reset" in run.recordings[0].notes["resets"]["rnn.l0"]
    assert 1.0 < run.reach(0.9, layer="rnn.l0") < STEPS
    assert (
        "a time step counts from the last reset" in (tmp_path / "run" / "report.html").read_text()
    )
