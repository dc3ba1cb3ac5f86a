"""Some losses of some sequences, for the profile alone: at every output step that is drawn, other sequences.

Sequences differ more than output steps do, and the few whose memory is long weigh most where the lags are long. To
follow all of them, each from a few steps, tells as much as several times as many rows of a few sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.lag_cotangents import Rows, rows_of
from rnndiag.engine.truncation.sweep.sampling import Sampling, drawn_steps


@dataclass(frozen=True)
class SampledLosses:
    """Where losses that were drawn start."""

    rows: Rows
    stands_for: Tensor | None = None
    """(T,): how many output steps each one that was drawn stands for, 0 for the others; None: all were taken."""
    count: Tensor | None = None
    """(T,): how many sequences the rows of an output stand for, those that have no loss there among them; None: all."""
    share: float = 1.0
    """Rows that were taken, of all."""


def drawn(chain: Chain, sampling: Sampling, draw: torch.Generator) -> SampledLosses:
    """As many output steps and sequences as `sampling` says, or all where there are no more losses: one step of each of
    equal stretches of the outputs, and with it the sequences of `by_turns`."""
    count, hit = len(sampling.sequences), chain.outputs()
    complete = count == chain.B and sampling.outputs == sampling.of_outputs
    if complete or int(hit.sum()) <= count * sampling.outputs:
        return SampledLosses(rows_of(chain))
    steps, width = drawn_steps(hit, sampling.outputs, draw)
    hits = hit.cpu()[steps]
    columns = by_turns(hits, count, draw)
    met = hits.gather(1, columns).sum(1)
    stands_for, alive = torch.zeros(2, chain.T, dtype=torch.float64)
    stands_for[steps] = width.double()
    alive[steps] = chain.mask().cpu()[steps].sum(1) * (met / hits.sum(1)).double()
    rows = Rows(steps[:, None] * chain.B + columns, steps)
    share = float(met.sum() / hit.sum())
    return SampledLosses(
        rows.to(hit.device), stands_for.to(hit.device), alive.to(hit.device), share
    )


def by_turns(hits: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Which `count` sequences are taken at each output, (K, count), where `hits` (K, B) says which have a loss there:
    those that were taken least so far, at random among equals.

    Where one more has a loss than before all start anew: it would be taken at the cost of those that had their turn.
    """
    taken, before, chosen = torch.zeros(hits.shape[1]), hits[0], []
    for here in hits:
        if bool((here & ~before).any()):
            taken.zero_()
        turn = taken + torch.rand(len(taken), generator=draw)
        columns = torch.where(here, turn, turn + len(hits) + 1).argsort()[:count].sort().values
        taken[columns] += here[columns]
        chosen.append(columns)
        before = here
    return torch.stack(chosen)
