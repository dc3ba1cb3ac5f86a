"""What a lag sweep looks at: which sequences, which losses, which lags; chosen to fit a budget, and said in words.

The cost is counted in row-steps: one loss of one sequence moved back one step. A plain training step makes T * B of
them forwards and backwards; batched over all losses a row-step costs a fraction of that (`ROW_COST`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.truncation.chain import Chain
from rnndiag.errors import BadArgument

ROW_COST = 0.3
"""What one row-step of the sweep costs, in row-steps of a plain training step, gradients included."""
STEP_COST = 24
"""A batch of rows costs as much as this many rows more: what a call of a small kernel takes whatever its size."""
LEAST_SEQUENCES = 4
"""Sequences are not sampled below this number: inner products of different sequences carry the result."""
LEAST_OUTPUTS = 8
"""Losses are not sampled below this number."""
DENSE_LAGS = 16
"""Gradients are measured at every lag up to this one, then at lags growing by `LAG_GROWTH`."""
LAG_GROWTH = 1.06


@dataclass(frozen=True)
class Sampling:
    """What was looked at, of how much."""

    sequences: tuple[int, ...]
    """The sequences looked at."""
    of_sequences: int
    outputs: int
    """Losses (output steps) looked at, in each of two independent samples where they are sampled."""
    of_outputs: int
    windows: tuple[int, ...]
    """The windows τ = 1 .. D whose gradients were measured."""
    lags: int
    """D: lags 0 .. D-1 were measured."""
    of_lags: int

    @property
    def replicas(self) -> int:
        """Independent samples of the losses."""
        return 1 if self.outputs == self.of_outputs else 2

    @property
    def complete(self) -> bool:
        """Whether every sequence and every loss was looked at."""
        return len(self.sequences) == self.of_sequences and self.outputs == self.of_outputs

    @property
    def numbers(self) -> tuple[int, int, int, int, int, int]:
        """Sequences of all, outputs of all, lags of all."""
        return (
            len(self.sequences),
            self.of_sequences,
            self.outputs,
            self.of_outputs,
            self.lags,
            self.of_lags,
        )

    @property
    def sentence(self) -> str:
        """What was sampled, and how much."""
        said = []
        if len(self.sequences) < self.of_sequences:
            said.append(f"{len(self.sequences)} of {self.of_sequences} sequences")
        if self.outputs < self.of_outputs:
            said.append(f"two samples of {self.outputs} of {self.of_outputs} output steps")
        if self.lags < self.of_lags:
            said.append(f"lags 0 to {self.lags - 1} of {self.of_lags}")
        if len(self.windows) < self.lags:
            said.append(f"gradients of {len(self.windows)} windows of {self.lags}")
        return "Sampled: " + ", ".join(said) + "." if said else "Nothing was sampled: exact."


def spaced_windows(lags: int) -> tuple[int, ...]:
    """Windows 1 .. D, dense at first and then growing by a constant factor; the last is D."""
    found, window = list(range(1, min(lags, DENSE_LAGS) + 1)), float(DENSE_LAGS)
    while found[-1] < lags:
        window = max(window * LAG_GROWTH, found[-1] + 1)
        found.append(min(int(window), lags))
    return tuple(found)


def training_step_cost(chain: Chain) -> float:
    """A plain training step of these layers, in row-steps."""
    return len(chain.links) * chain.T * (chain.B + STEP_COST)


def sweep_cost(chain: Chain, outputs: Tensor, columns: int, lags: int, windows: int) -> float:
    """A sweep over these output steps and this many columns, in row-steps of a plain training step."""
    alive = sum(
        columns * float((outputs >= d).sum()) + STEP_COST for d in range(lags) if len(outputs)
    )
    gradients = 1.0 if windows == lags else 0.5
    spaced = 0.0 if windows == lags else windows * chain.T * columns * ROW_COST
    return len(chain.links) * (ROW_COST * (gradients * alive) + spaced)


def choose(
    chain: Chain,
    lags: int,
    budget: float | None,
    samples: int | tuple[int, ...] | None,
    anchors: int | None,
    draw: torch.Generator,
) -> Sampling:
    """The sampling that fits `budget` plain training steps (None: look at everything); what is given by hand stands."""
    steps = chain.outputs().any(1).nonzero().squeeze(1)
    given = len(samples) if isinstance(samples, tuple) else samples
    _check("samples", given, chain.B)
    _check("anchors", anchors, None)
    every = tuple(range(1, lags + 1))
    sequences = chain.B if given is None else min(given, chain.B)
    outputs = len(steps) if anchors is None else min(anchors, len(steps))
    windows = every
    limit = float("inf") if budget is None else budget * training_step_cost(chain)

    def cost() -> float:
        replicas = 1 if outputs == len(steps) else 2
        at = torch.linspace(0, len(steps) - 1, outputs).round().long() if outputs else steps
        return sweep_cost(chain, steps[at], sequences * replicas, lags, len(windows))

    spaced = spaced_windows(lags)
    if cost() > limit and sweep_cost(chain, steps, sequences, lags, len(spaced)) < cost():
        windows = spaced
    while cost() > limit and given is None and sequences > min(LEAST_SEQUENCES, chain.B):
        sequences -= 1
    while cost() > limit and anchors is None and outputs > LEAST_OUTPUTS:
        outputs = max(LEAST_OUTPUTS, int(outputs * 0.8))
    if isinstance(samples, tuple):
        chosen = samples
    else:
        chosen = tuple(sorted(torch.randperm(chain.B, generator=draw)[:sequences].tolist()))
    return Sampling(chosen, chain.B, outputs, len(steps), windows, lags, chain.T)


def _check(name: str, value: int | None, most: int | None) -> None:
    if value is not None and value < 1:
        raise BadArgument(f"{name} is {value}.", "Give a number of 1 or more, or None.")


@dataclass(frozen=True)
class Sampled:
    """The chain as it was sampled: columns are sequences, two of each where the losses are sampled too."""

    chain: Chain
    weights: Tensor | None
    """(T,): what every loss was multiplied with; None: losses were not sampled."""
    picked: Tensor | None
    """(T, columns): the sampled losses."""


def sample(chain: Chain, sampling: Sampling, draw: torch.Generator) -> Sampled:
    """The sampled sequences with the sampled losses, one loss drawn from each of equal stretches of the outputs."""
    columns = torch.tensor(sampling.sequences)
    if sampling.replicas == 1:
        whole = columns.tolist() == list(range(chain.B))
        return Sampled(chain if whole else chain.select(columns).prepared(), None, None)
    steps = chain.outputs().any(1).nonzero().squeeze(1)
    bounds = torch.linspace(0, len(steps), sampling.outputs + 1).round().long()
    width = bounds[1:] - bounds[:-1]
    weights = torch.zeros(chain.T, dtype=chain.direct[0].dtype)
    picked = torch.zeros(chain.T, 2, dtype=torch.bool)
    for replica in range(2):
        offset = (torch.rand(len(width), generator=draw) * width).long()
        chosen = steps.cpu()[bounds[:-1] + offset]
        picked[chosen, replica] = True
        weights[chosen] = width.to(weights.dtype)
    device = chain.direct[0].device
    weights, picked = weights.to(device), picked.to(device)
    taken = chain.select(torch.cat([columns, columns]))
    by_column = picked.repeat_interleave(len(columns), 1)
    factor = (weights[:, None] * by_column)[..., None]
    direct = tuple(part * factor for part in taken.direct)
    return Sampled(taken.with_direct(direct).prepared(), weights, by_column)
