"""A plain PyTorch loop that cuts its sequences in chunks: what does each chunk's own window cost, and what is lost?"""

from __future__ import annotations

import torch
from torch import nn

import rnndiag
from rnndiag.stats.reach import reach

CHUNK, STEPS, BATCH, HIDDEN = 16, 64, 8, 16


def main() -> None:
    torch.manual_seed(0)
    rnn, head = nn.GRU(1, HIDDEN), nn.Linear(HIDDEN, 1)
    parameters = [*rnn.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    for epoch in range(6):
        sequence = torch.randn(STEPS, BATCH, 1)
        target = sequence.roll(8, 0)  # what was seen eight steps ago
        state = None
        for start in range(0, STEPS, CHUNK):
            part = slice(start, start + CHUNK)
            with rnndiag.probe(rnn) as probe:
                outputs, state = rnn(sequence[part], state)
                loss = (head(outputs) - target[part]).square().mean()
                optimizer.zero_grad()
                loss.backward()
            if epoch == 5:
                (run,) = probe.layer_runs
                score = rnndiag.estimate(run, rnndiag.estimators.Window(4))
                print(
                    f"chunk from {start:2d}: proof {probe.proofs[0].verdict}, "
                    f"a window of 4 within it is off by {score.bias:.1%}"
                )
            optimizer.step()
            state = state.detach()
    found = reach(rnndiag.lag_sweep(run).profile.log)
    print(f"reach within a chunk: {found.text} of {CHUNK} steps")


if __name__ == "__main__":
    main()
