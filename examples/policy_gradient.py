"""A recurrent policy that acts one step at a time: 40 calls of a cell are one recurrence, and are seen as one."""

from __future__ import annotations

import torch
from torch import nn

import rnndiag

STEPS, PLAYERS, HIDDEN = 40, 16, 12


class Policy(nn.Module):
    """A GRU cell over observations, and the logit of pulling the lever."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2, HIDDEN)
        self.act = nn.Linear(HIDDEN, 1)


def episode(policy: Policy) -> torch.Tensor:
    """The hint at the first step says which lever pays at the last one. Returns the loss of REINFORCE."""
    hint = torch.randint(2, (PLAYERS,)).float() * 2 - 1
    state = torch.zeros(PLAYERS, HIDDEN)
    for t in range(STEPS):
        seen = torch.stack([hint if t == 0 else torch.zeros(PLAYERS), torch.randn(PLAYERS)], 1)
        state = policy.cell(seen, state)
    choice = torch.distributions.Bernoulli(logits=policy.act(state).squeeze(1))
    action = choice.sample()
    reward = (action * 2 - 1) * hint
    return -(choice.log_prob(action) * (reward - reward.mean())).mean()


def main() -> None:
    torch.manual_seed(0)
    policy = Policy()
    with rnndiag.probe(policy) as probe:
        episode(policy).backward()
    (run,) = probe.layer_runs
    sizes = rnndiag.adjoints(run).state.norm(dim=-1).mean(1)
    print(f"{run.name}: {run.T} calls as one recurrence, proof {probe.proofs[0].verdict}")
    print(f"reach: the first step gets {float(sizes[0] / sizes[-1]):.1e} of what the last one gets")


if __name__ == "__main__":
    main()
