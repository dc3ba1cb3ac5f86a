"""The noise yardstick σ: the standard deviation of a minibatch gradient, from its sequences' shares."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.parameter_layout import ParameterLayout
from rnndiag.engine.truncation.sweep.sequence_statistics import SequenceStatistics
from rnndiag.engine.truncation.sweep.truncated_adjoints import gradient_of


def sequence_noise(
    chain: Chain, population: SequenceStatistics, delta: State, full: Tensor
) -> float:
    """σ with σ² = B/(B-1) Σ_b |g_b - g/B|², g_b the sequence's share of g; NaN for one sequence."""
    if population.batch < 2 or population.sampled < 2:
        return math.nan
    total, own = full.sum(0), 0.0
    if len(full) == population.sampled:
        return math.sqrt(max(population.square(full, total).spread, 0.0))
    for b in range(chain.B):
        one = gradient_of(chain.select([b]).prepared(), population.layout, _column(delta, b))
        own += float(one.double().square().sum())
    spread = own - float(total.double().square().sum()) / population.batch
    return math.sqrt(max(spread * population.batch / (population.batch - 1), 0.0))


def _column(delta: State, b: int) -> State:
    return tuple(part[:, b : b + 1] for part in delta)


def sequence_norms(chain: Chain, layout: ParameterLayout, delta: State) -> Tensor:
    """|g_b| of every sequence's share of the gradient, (B,)."""
    norms = [
        gradient_of(chain.select([b]).prepared(), layout, _column(delta, b)).norm()
        for b in range(chain.B)
    ]
    return torch.stack(norms)
