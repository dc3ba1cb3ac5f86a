"""A recurrent policy in 16 games at once, whose state is reset where a game ends: its calls are seen as one recurrence.

Every stretch between two resets is a sequence of that recurrence, so the question stays the same: how far back does the
gradient of a reward reach?
"""

from __future__ import annotations

import torch
from torch import nn

import rnndiag

STEPS, GAMES, HIDDEN = 64, 16, 12


class Policy(nn.Module):
    """A GRU cell over observations, and the logit of pulling the lever."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2, HIDDEN)
        self.act = nn.Linear(HIDDEN, 1)


def rollout(policy: Policy) -> torch.Tensor:
    """A hint at the first step of a game says which lever pays at its last one. Returns the loss of REINFORCE."""
    state = torch.zeros(GAMES, HIDDEN)
    first, left = torch.ones(GAMES), torch.randint(5, 25, (GAMES,))
    hint = torch.randint(2, (GAMES,)).float() * 2 - 1
    terms = []
    for _ in range(STEPS):
        seen = torch.stack([hint * first, torch.randn(GAMES)], 1)
        state = policy.cell(seen, state * (1 - first)[:, None])
        choice = torch.distributions.Bernoulli(logits=policy.act(state).squeeze(1))
        action, left = choice.sample(), left - 1
        over = left == 0
        reward = torch.where(over, (action * 2 - 1) * hint, 0.0)
        terms.append(-choice.log_prob(action) * reward)
        first = over.float()
        left = torch.where(over, torch.randint(5, 25, (GAMES,)), left)
        hint = torch.where(over, torch.randint(2, (GAMES,)).float() * 2 - 1, hint)
    return torch.stack(terms).sum() / GAMES


def main() -> None:
    torch.manual_seed(0)
    policy = Policy()
    with rnndiag.probe(policy) as probe:
        rollout(policy).backward()
    (run,) = probe.layer_runs
    print(f"{run.name}: {STEPS} calls as one recurrence, proof {probe.proofs[0].verdict}")
    print(f"{run.name}: {probe.backward_passes[0].resets[run.name]}")
    print(f"reach: {rnndiag.reach(rnndiag.lag_sweep(run).profile.log).text} of {run.T} steps")


if __name__ == "__main__":
    main()
